"""Literal aliases used in signatures.  No numpy: formula and SQL modules import them."""

from __future__ import annotations

from typing import Literal

Method = Literal["REML", "ML"]
Centering = Literal["none", "group", "grand"]
Unseen = Literal["error", "population", "missing"]
DfMethod = Literal["hlm", "between_within", "residual", "satterthwaite", "kenward_roger", "normal"]
Vcov = Literal["model", "CR0", "CR1", "CR2"]
IntervalMethod = Literal["wald", "profile", "bootstrap"]
