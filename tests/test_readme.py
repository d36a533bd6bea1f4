"""What the README tells users to type."""

import re
import shlex
from pathlib import Path

import pytest

from resnext_kernels import cli

README = (Path(__file__).parent.parent / "README.md").read_text()
COMMANDS = re.findall(r"^python -m resnext_kernels ([^#\n]+)", README, flags=re.M)


def test_code_runs_as_written(capsys):
    (code,) = re.findall(r"^```python\n(.*?)^```", README, flags=re.M | re.S)
    exec(compile(code, "README.md", "exec"), {})
    shown = capsys.readouterr().out
    assert "16 replaced" in shown and "53 convolutions fused" in shown
    assert "16 calls of grouped convolutions" in shown and "1x128x56x56 -> 128 3x3 g32" in shown


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_are_understood(line, monkeypatch):
    for command in cli._COMMANDS:
        monkeypatch.setattr(command, "run", lambda arguments: 0)
    assert cli.main(shlex.split(line)) == 0
