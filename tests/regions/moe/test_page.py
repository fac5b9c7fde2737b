"""What docs/moe.md shows, runs."""

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[3] / "docs" / "moe.md"


def test_every_block_runs_after_those_before_it():
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == text.count("```python") > 5
    names = {}
    for number, block in enumerate(blocks, 1):
        exec(compile(block, f"{PAGE.name}, block {number}", "exec"), names)
