"""The documentation as a site: `make docs` builds it, and nobody else has to be reached to read it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import cnsn_cli

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site. The build is strict: a broken link or a docstring that cannot be read ends it."""
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(folder)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.long
def test_every_page_is_there_and_loads_nothing_from_elsewhere(site):
    pages = {path.relative_to(site).with_suffix(".md").as_posix() for path in site.rglob("*.html")}
    written = {f"docs/{path.name}" for path in ROOT.glob("docs/*.md")}
    outside = {"CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/RESULTS.md"}
    assert pages == written | outside | {"index.md", "404.md"}
    for path in site.rglob("*.html"):
        tags = re.findall(r"<(?:link|script|img|iframe|source)\b[^>]*>", path.read_text())
        assert not [tag for tag in tags if re.search(r"""(?:href|src)=["']?(?:https?:)?//""", tag)]
    for path in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(?:https?:)?//|@import", path.read_text())


@pytest.mark.long
def test_the_api_reference_shows_the_arguments_of_train(site):
    """They are not in its source: a decorator makes them."""
    page = (site / "docs/api.html").read_text()
    shown = re.findall(r'<h3 id="cnsn_cli\.(\w+)"', page)
    assert {*cnsn_cli.__all__, "train"} - {"CnsnError", "__version__"} <= set(shown)
    assert len(re.findall(r"<code>save_every</code>", page)) == 2  # of train and of dry_run
    assert 'id="cnsn_cli.errors.ArgumentError"' in page
