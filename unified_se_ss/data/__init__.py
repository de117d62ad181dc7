"""From folders of recordings to padded batches.

Data flows one way: folders -> manifest -> data set -> sampler -> batch. The demo corpus
(`unified_se_ss.data.demo.corpus`) is made only where it is asked for, and is not
imported here.
"""

from unified_se_ss.data.array_scenes import ArrayDataset, ArrayScene, RandomChoiceDataset
from unified_se_ss.data.augment import speed_perturb
from unified_se_ss.data.batching import BucketBatchSampler
from unified_se_ss.data.binaural import (
    BinauralBatch,
    BinauralDataset,
    BinauralExample,
    collate_binaural,
)
from unified_se_ss.data.binaural_mixing import BinauralDynamicMixing
from unified_se_ss.data.corpora.array_recordings import prepare_recordings
from unified_se_ss.data.corpora.librimix import prepare_librimix
from unified_se_ss.data.corpora.speech_folder import prepare_speech_folder
from unified_se_ss.data.corpora.wsj0mix import prepare_binaural_wsj0mix, prepare_wsj0mix
from unified_se_ss.data.dataset import Batch, Example, ItemKey, MixtureDataset, collate
from unified_se_ss.data.dynamic_mixing import DynamicMixingDataset
from unified_se_ss.data.guided import MicBeamBatch, MicBeamExample, collate_mic_beam
from unified_se_ss.data.manifest import Item, Manifest, read_manifest, write_manifest
from unified_se_ss.data.paired_rirs import PairedRIRDataset, PairedRIRGains
from unified_se_ss.data.recording_dataset import RecordingDataset, read_recordings
from unified_se_ss.data.rooms import RoomBank, RoomSettings, prepare_room_bank

__all__ = [
    "ArrayDataset",
    "ArrayScene",
    "Batch",
    "BinauralBatch",
    "BinauralDataset",
    "BinauralDynamicMixing",
    "BinauralExample",
    "BucketBatchSampler",
    "PairedRIRDataset",
    "PairedRIRGains",
    "DynamicMixingDataset",
    "RandomChoiceDataset",
    "Example",
    "MicBeamBatch",
    "MicBeamExample",
    "Item",
    "ItemKey",
    "Manifest",
    "MixtureDataset",
    "RecordingDataset",
    "RoomBank",
    "RoomSettings",
    "collate",
    "collate_mic_beam",
    "collate_binaural",
    "prepare_binaural_wsj0mix",
    "prepare_librimix",
    "prepare_recordings",
    "prepare_room_bank",
    "prepare_speech_folder",
    "prepare_wsj0mix",
    "read_manifest",
    "read_recordings",
    "speed_perturb",
    "write_manifest",
]
