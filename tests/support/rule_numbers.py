"""How the number of a rule of the contract is written."""

from __future__ import annotations

import re

# A family's letter and one or two digits, also between underscores, as in ``test_R4_H12_context``.
# Three digits are a linter's code (S101), what stands in a name is part of it (bf16, Falcon-H1).
NUMBER = re.compile(r"(?<![A-Za-z0-9])(?<![a-z]-)[RAELSFDH][1-9]\d?(?![A-Za-z0-9])")
