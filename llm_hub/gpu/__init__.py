"""GPUs: which there are, which backend was put on which, whether it fits, and what would."""

from __future__ import annotations

from llm_hub.gpu.inventory import Gpu, GpuProcess, GpuSource, Inventory, MigInstance, read_inventory
from llm_hub.gpu.plan import Claim, Finding, Placement, Plan, resolve

__all__ = [
    "Claim",
    "Finding",
    "Gpu",
    "GpuProcess",
    "GpuSource",
    "Inventory",
    "MigInstance",
    "Placement",
    "Plan",
    "read_inventory",
    "resolve",
]
