"""A hook of mkdocs: the site has the folders of the repository, so that each link works in both.

`make docs` runs it. Without it, a site would have the pages of docs/ alone, and links from them to the rest
of the repository would lead nowhere. README.md is the front page.
"""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
OUTSIDE = (  # files that pages link to, beside those of docs/
    "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/RESULTS.md", "benchmarks/ablation.toml",
    "examples/my-nets/my_nets.py",
)  # fmt: skip


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Move the files of docs/ from the top of the site to docs/, and add those outside of docs/."""
    docs = [
        f"docs/{file.src_uri}"
        for file in files
        if file.src_dir == config.docs_dir and file.inclusion.is_included()
    ]
    moved = [File.generated(config, name, abs_src_path=str(ROOT / name)) for name in (*OUTSIDE, *docs)]
    return Files([*moved, *(file for file in files if file.src_dir != config.docs_dir)])
