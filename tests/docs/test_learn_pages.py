"""The pages of docs/learn show the current output of their code, and numbers in prose are ones that
the code prints.
"""

import importlib.util
import re
from pathlib import Path

import pytest

LEARN = Path(__file__).resolve().parents[2] / "docs" / "learn"
PAGES = sorted(LEARN.glob("*.md"))
YEARS = {"1990", "2016", "2019", "2022"}  # publication years

spec = importlib.util.spec_from_file_location("make_learn", LEARN / "make.py")
make = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make)

STALE = """# A page

```python
print(6 * 7)
open("dot.svg", "w").write("<svg/>")
```

```text
41
```

![A dot](dot.svg)
"""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page_and_pictures_are_up_to_date(page):
    for path, text in make.made(page).items():
        assert path.read_text(encoding="utf-8") == text, (
            f"{path.name} is stale: run python docs/learn/make.py"
        )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_decimals_in_prose_appear_in_code_or_output(page):
    text = re.sub(r"(?<=\d),(?=\d{3})", "", page.read_text(encoding="utf-8"))
    blocks = "".join(match[0] for match in make.BLOCK.finditer(text))
    prose = make.BLOCK.sub("", text)
    alone = {number for number in re.findall(r"\d+\.\d+|\d{4,}", prose) if number not in blocks}
    assert alone <= YEARS, f"numbers that the page's code does not have: {alone}"


def test_every_picture_is_on_a_page_and_every_page_in_the_index():
    shown = {
        match["name"]
        for page in PAGES
        for match in make.PICTURE.finditer(page.read_text(encoding="utf-8"))
    }
    assert shown == {path.name for path in LEARN.glob("*.svg")}
    links = set(
        re.findall(r"\]\(([\w-]+\.md)\)", (LEARN / "README.md").read_text(encoding="utf-8"))
    )
    assert links == {page.name for page in PAGES} - {"README.md"}


def test_files_of_lmsmith_named_on_pages_exist():
    for page in PAGES:
        for name in re.findall(
            r"`((?:lmsmith|docs)/[\w/]+(?:\.py|/))", page.read_text(encoding="utf-8")
        ):
            assert (LEARN.parents[1] / name).exists(), f"{page.name} names {name}"


def test_check_reports_a_stale_page_and_the_command_updates_it(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text(STALE, encoding="utf-8")
    assert make.main(["--check", str(page)]) == 1
    assert page.read_text(encoding="utf-8") == STALE
    assert not (tmp_path / "dot.svg").exists()
    assert "page.md" in capsys.readouterr().out

    assert make.main([str(page)]) == 0
    assert page.read_text(encoding="utf-8") == STALE.replace("41", "42")
    assert (tmp_path / "dot.svg").read_text(encoding="utf-8") == "<svg/>"
    assert make.main(["--check", str(page)]) == 0

    (tmp_path / "dot.svg").write_text("<svg />", encoding="utf-8")
    assert make.main(["--check", str(page)]) == 1


def test_a_block_that_prints_nothing_loses_its_old_output(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\nx = 1\n```\n\n```text\nold\n```\n", encoding="utf-8")
    assert make.made(page) == {page: "```python\nx = 1\n```\n"}


def test_a_plot_that_no_code_draws_is_refused(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("![Lost](lost.svg)\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"lost\.svg"):
        make.made(page)


def test_an_error_names_the_line_of_the_page(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Title\n\n```python\n1 / 0\n```\n", encoding="utf-8")
    with pytest.raises(ZeroDivisionError) as caught:
        make.made(page)
    assert caught.traceback[-1].lineno + 1 == 4
