"""The published networks: from their recipes, and built of SpeechBrain's modules.

Both have the same weights, so that they can be set against each other.
"""

from __future__ import annotations

import tempfile

import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.lobes.models import dual_path as speechbrain_dual_path
from torch import nn

from benchmarks.frame import ROOT
from unified_se_ss.networks import DualPath, UnifiedNetwork
from unified_se_ss.networks.speechbrain_weights import to_speechbrain

RECIPES = {
    "SepFormer": "hparams/libri2mix_noisy.yaml",
    "DPRNN": "hparams/libri2mix_noisy_dprnn.yaml",
}

#: Sizes to try a recipe out with.
SMALL = {
    "SepFormer": dict(
        n_basis=16, n_features=16, chunk_length=10, heads=2, feed_forward=32, ss_layers=2
    ),
    "DPRNN": dict(n_basis=16, n_features=16, chunk_length=10, hidden=16, ss_blocks=2),
}


def recipe(kind: str, small: bool = False, **overrides) -> dict:
    """What the YAML of a kind of network describes, its weights always the same.

    Arguments
    ---------
    kind : str
        One of ``RECIPES``.
    small : bool
        Sizes to try it out with, in place of the published ones.
    **overrides
        Keys to replace.
    """
    sizes = SMALL[kind] if small else {}
    unused = {"data_folder": "unused", "output_folder": tempfile.gettempdir()}
    with open(ROOT / RECIPES[kind], encoding="utf-8") as file:
        return load_hyperpyyaml(file, {**unused, **sizes, **overrides})


def of_speechbrain(kind: str, network: DualPath) -> nn.Module:
    """SpeechBrain's dual-path module of the sizes and weights of ours."""
    block = network.blocks[0]
    width = block.intra.n_features

    def model():
        if kind == "DPRNN":
            hidden = block.intra.rnn.hidden_size
            return speechbrain_dual_path.SBRNNBlock(width, hidden, 1, bidirectional=True)
        layers = block.intra.layers
        return speechbrain_dual_path.SBTransformerBlock(
            len(layers),
            width,
            layers[0].attention.heads,
            layers[0].feed_forward[0].out_features,
            dropout=0.0,
            use_positional_encoding=True,
            norm_before=True,
        )

    module = speechbrain_dual_path.Dual_Path_Model(
        network.bottleneck.in_features,
        width,
        model(),
        model(),
        num_layers=len(network.blocks),
        norm="ln",
        K=network.chunk_length,
        num_spks=network.n_sources,
        linear_layer_after_inter_intra=kind == "DPRNN",
    )
    missing, unexpected = module.load_state_dict(
        to_speechbrain(network.state_dict()), strict=False
    )
    assert not unexpected and all(name.endswith(".pe") for name in missing)
    return module


class PublishedNetwork(nn.Module):
    """Encoder, SE module, SS module and decoder, all of them SpeechBrain's.

    Arguments
    ---------
    kind : str
        One of ``RECIPES``.
    network : UnifiedNetwork
        Whose sizes and weights it gets.
    """

    def __init__(self, kind: str, network: UnifiedNetwork):
        super().__init__()
        ours_in, ours_out = network.encoder.convolution, network.decoder.convolution
        kernel_size, stride = ours_in.kernel_size[0], ours_in.stride[0]
        n_basis = ours_in.out_channels
        self.encoder = speechbrain_dual_path.Encoder(kernel_size, n_basis)
        self.encoder.conv1d.weight.data = ours_in.weight.data.clone()
        self.enhancer = of_speechbrain(kind, network.enhancer)
        self.separator = of_speechbrain(kind, network.separator)
        self.decoder = speechbrain_dual_path.Decoder(
            n_basis, 1, kernel_size=kernel_size, stride=stride, bias=False
        )
        self.decoder.weight.data = ours_out.weight.data.clone()
        self.n_sources = network.separator.n_sources

    def forward(
        self, mixture: torch.Tensor, clean: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Estimates [B, T, J], enhanced and clean representation [B, N, L]."""
        noisy, clean = self.encoder(mixture), self.encoder(clean)
        enhanced = noisy * self.enhancer(noisy)[0]
        masked = torch.stack([enhanced] * self.n_sources) * self.separator(enhanced)
        decoded = [self.decoder(source).view(len(mixture), -1) for source in masked]
        estimates = torch.stack(decoded, -1)
        missing = mixture.shape[1] - estimates.shape[1]
        return nn.functional.pad(estimates, (0, 0, 0, missing)), enhanced, clean
