"""The same test set with several beamformers, one after the other."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from unified_se_ss.data.dataset import as_item_key
from unified_se_ss.data.guided import MicBeamExample


class MultiBeamformerTestSet(torch.utils.data.Dataset):
    """Data sets by the name of their guide, as one.

    Arguments
    ---------
    datasets : dict
        Data sets of guided examples by name, each as long as it likes.

    Example
    -------
    >>> class Two(torch.utils.data.Dataset):
    ...     durations = [1.0, 1.0]
    ...     def __len__(self):
    ...         return 2
    ...     def __getitem__(self, key):
    ...         return MicBeamExample(f"item-{key.index}", torch.ones(2, 3), torch.ones(3))
    >>> data = MultiBeamformerTestSet({"mvdr": Two(), "delay_and_sum": Two()})
    >>> len(data), data[3].id, data[3].conditions
    (4, '0003_delay_and_sum', {'item': 'item-1', 'guide': 'delay_and_sum'})
    >>> data.find("0003_delay_and_sum").conditions["item"]
    'item-1'
    """

    def __init__(self, datasets: Mapping):
        self.datasets = dict(datasets)
        self.places = [
            (name, index)
            for name, data in self.datasets.items()
            for index in range(len(data))
        ]

    @property
    def durations(self) -> list[float]:
        """Seconds of each item."""
        return [x for dataset in self.datasets.values() for x in dataset.durations]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, key) -> MicBeamExample:
        """An item under an ID of its own; its conditions name the item and the guide."""
        key = as_item_key(key)
        name, index = self.places[key.index]
        example = self.datasets[name][key._replace(index=index)]
        return example._replace(
            id=f"{key.index:04d}_{name}",
            conditions={"item": example.id, **example.conditions, "guide": name},
        )

    def find(self, item_id: str) -> MicBeamExample:
        """The item of an ID, in the first epoch, as evaluations have it."""
        return self[int(item_id.partition("_")[0])]
