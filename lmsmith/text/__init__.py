"""Raw text: reading it as it comes in real files, and making some where there is none."""
