"""One training step of the published system, built of SpeechBrain's parts, as oracle."""

import pytest
import torch
from distributed_steps import network as small_network
from speechbrain.lobes.models import dual_path as theirs
from speechbrain.nnet.losses import get_si_snr_with_pitwrapper
from torch.utils.data import DataLoader

from train import UnifiedBrain
from unified_se_ss.data.dataset import Batch
from unified_se_ss.networks.speechbrain_weights import from_speechbrain, to_speechbrain

WEIGHT = 0.1
RATE = 1e-3


def speechbrain_modules(network):
    """SpeechBrain's modules with the weights of ours."""

    def dual_path(ours, speakers, blocks):
        # Two of them: one instance for both would share its weights within a block.
        intra, inter = (theirs.SBRNNBlock(12, 8, 1, bidirectional=True) for _ in range(2))
        net = theirs.Dual_Path_Model(
            16, 12, intra, inter, num_layers=blocks, norm="ln", K=10, num_spks=speakers
        ).double()
        net.load_state_dict(to_speechbrain(ours.state_dict()))
        return net

    encoder = theirs.Encoder(16, 16).double()
    encoder.conv1d.weight.data = network.encoder.convolution.weight.data.clone()
    decoder = theirs.Decoder(16, 1, kernel_size=16, stride=8, bias=False).double()
    decoder.weight.data = network.decoder.convolution.weight.data.clone()
    enhancer = dual_path(network.enhancer, 1, 1)
    return encoder, enhancer, dual_path(network.separator, 2, 2), decoder


def published_losses(modules, mixture, sources):
    """SS and SE loss as the published script computes them; sources are [B, T, J]."""
    encoder, enhancer, separator, decoder = modules
    mixture_h, clean_h = encoder(mixture), encoder(sources.sum(-1))
    enhanced = mixture_h * enhancer(mixture_h)[0]
    masked = torch.stack([enhanced] * 2) * separator(enhanced)
    estimates = torch.stack([decoder(masked[i]).view(1, -1) for i in range(2)], -1)
    missing = mixture.shape[1] - estimates.shape[1]
    estimates = torch.nn.functional.pad(estimates, (0, 0, 0, missing))
    ss_loss = get_si_snr_with_pitwrapper(sources, estimates).mean()
    se_loss = torch.nn.functional.mse_loss(enhanced, clean_h, reduction="sum")
    return ss_loss, WEIGHT * se_loss


def published_step(modules, mixture, sources):
    """Two backward passes, a loop over tensors, clipping, Adam; gradients kept apart.

    Returns whether any tensor was in conflict, and the SS gradient of the encoder.
    """
    encoder, enhancer = modules[:2]
    parameters = [p for module in modules for p in module.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=RATE)
    ss_loss, se_loss = published_losses(modules, mixture, sources)
    shared = [*encoder.parameters(), *enhancer.parameters()]
    se_loss.backward(retain_graph=True)
    se_gradients = [p.grad.clone() for p in shared]
    optimizer.zero_grad()
    ss_loss.backward()
    ss_of_encoder = shared[0].grad.clone()
    conflict = False
    for parameter, se in zip(shared, se_gradients):
        ss = parameter.grad.clone().view(-1)
        se_flat = se.view(-1)
        product = torch.dot(se_flat, ss)
        if product < 0:
            conflict = True
            se_flat = se_flat - product * ss / (ss.norm() ** 2)
        parameter.grad = parameter.grad + se_flat.view_as(se)
    modulated = shared[0].grad.clone()
    torch.nn.utils.clip_grad_norm_(parameters, 5.0)
    optimizer.step()
    return conflict, ss_of_encoder, modulated


@pytest.mark.parametrize("seed", range(3))
def test_one_step_gives_the_published_weights(seed):
    torch.manual_seed(seed)
    network = small_network().double()
    modules = speechbrain_modules(network)
    sources = torch.randn(1, 2, 435, dtype=torch.float64)
    mixture = sources.sum(1) + 0.5 * torch.randn(1, 435, dtype=torch.float64)

    conflict, ss_gradient, modulated = published_step(
        modules, mixture, sources.transpose(1, 2)
    )
    assert conflict
    # And it is not what the published code did under its pinned torch: 2 * g_m.
    assert (modulated - 2 * ss_gradient).norm() > 0.01 * ss_gradient.norm()

    brain = UnifiedBrain(
        modules={"network": network},
        opt_class=lambda parameters: torch.optim.Adam(parameters, lr=RATE, fused=True),
        hparams={
            "shared_modules": ["network.encoder", "network.enhancer"],
            "rule": "project",
            "use_se": True,
            "weight_se": WEIGHT,
            "se_loss": "sum",
            "loss_threshold": -30,
        },
        run_opts={"device": "cpu", "noprogressbar": True},
    )
    brain.on_stage_end = lambda *_: None
    batch = Batch(["a"], torch.tensor([435]), {"mixture": mixture, "sources": sources})
    brain.fit([1], DataLoader([batch], batch_size=None))

    encoder, enhancer, separator, decoder = modules
    pairs = {
        "encoder.convolution.weight": encoder.conv1d.weight,
        "decoder.convolution.weight": decoder.weight,
        **{f"enhancer.{n}": p for n, p in from_speechbrain(enhancer.state_dict()).items()},
        **{
            f"separator.{n}": p for n, p in from_speechbrain(separator.state_dict()).items()
        },
    }
    for name, parameter in network.named_parameters():
        # Adam's first step divides by |g|: where g is rounding, so is its sign.
        torch.testing.assert_close(parameter, pairs[name], rtol=1e-6, atol=1e-9)
