"""What the processes of a run do together."""

from __future__ import annotations

import os

import speechbrain as sb
import torch


def on_main(function, *arguments):
    """Call a function on the main process, then on the others; each gets its result.

    For what makes files once and is quick when they are there.
    """
    results = []
    sb.utils.distributed.run_on_main(
        lambda: results.append(function(*arguments)),
        post_func=lambda: results.append(function(*arguments)),
    )
    return results[0]


def rank_and_size() -> dict:
    """This process' rank and the number of processes, as samplers take them."""
    return {
        "rank": int(os.environ.get("RANK", 0)),
        "world_size": int(os.environ.get("WORLD_SIZE", 1)),
    }


def gather(items: list) -> list:
    """Join the lists of all ranks; every rank gets the whole."""
    if not torch.distributed.is_initialized():
        return items
    parts = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, items)
    return [item for part in parts for item in part]
