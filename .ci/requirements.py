"""Print the requirements of the package and of the extras named on the command line, from pyproject.toml."""

import sys
from pathlib import Path

import tomllib

project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
extras = project["optional-dependencies"]
unknown = [name for name in sys.argv[1:] if name not in extras]
if unknown:
    sys.exit(f"requirements.py: no extra {', '.join(unknown)}; pyproject.toml has {', '.join(extras)}")
for requirement in sorted({*project["dependencies"], *(r for name in sys.argv[1:] for r in extras[name])}):
    print(requirement)
