"""Raw text: reads it from files in many formats, and generates synthetic stories."""
