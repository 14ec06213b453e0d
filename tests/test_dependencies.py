"""What the package asks for: no release that is known to do harm."""

import re
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]


def asked(name):
    """What `pyproject.toml` lets be installed of a package."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = [Requirement(line) for line in re.findall(rf'^  "({name}\b[^"]*)"', text, re.MULTILINE)]
    assert found
    return SpecifierSet(",".join(str(requirement.specifier) for requirement in found))


@pytest.mark.parametrize("name", ["lightning", "pytorch-lightning"])
def test_the_poisoned_releases_of_lightning_are_never_installed(name):
    """GHSA-w37p-236h-pfx3."""
    allowed = asked(name)
    assert not {"2.6.2", "2.6.3"} & set(allowed.filter(["2.5.0", "2.6.1", "2.6.2", "2.6.3", "2.6.6"]))
    assert version(name) in allowed
    pinned = re.search(rf"^{name}==(\S+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert pinned is not None and pinned[1] in allowed
