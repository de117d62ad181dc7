"""Two losses on one encoder in a plain PyTorch loop: no SpeechBrain, no YAML.

python plain_loop.py
"""

import torch

from unified_se_ss.gradients import TaskLoss, TwoTaskGradients, TwoTaskLosses


def made_up_batch(spectra, items=32):
    """Classes, the clean features that follow from them, and noise upon these."""
    classes = torch.randint(len(spectra), (items,))
    clean = spectra[classes]
    return clean + torch.randn_like(clean), clean, classes


def train(steps=200, rule="project"):
    """Train for some steps, and say how both losses and the gradients did."""
    torch.manual_seed(0)
    network = torch.nn.ModuleDict(
        {
            "encoder": torch.nn.Sequential(torch.nn.Linear(20, 32), torch.nn.Tanh()),
            "classifier": torch.nn.Linear(32, 10),
            "enhancer": torch.nn.Linear(32, 20),
        }
    )
    gradients = TwoTaskGradients(
        network.named_parameters(), shared=["encoder"], auxiliary=["enhancer"], rule=rule
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=0.003, fused=True)
    spectra = torch.randn(10, 20)

    report = []
    for _ in range(steps):
        noisy, clean, classes = made_up_batch(spectra)
        hidden = network["encoder"](noisy)
        main = torch.nn.functional.cross_entropy(
            network["classifier"](hidden), classes, reduction="none"
        )
        auxiliary = (network["enhancer"](hidden) - clean).square().mean(1)

        gradients.accumulate(TwoTaskLosses(TaskLoss.of(main), TaskLoss.of(0.3 * auxiliary)))
        combined = gradients.combine()  # every p.grad is ready
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        if combined.main_finite:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)

        conflicts = (combined.product < 0).double().mean()
        report.append(
            torch.stack([main.detach().mean(), auxiliary.detach().mean(), conflicts])
        )
    return torch.stack(report)


if __name__ == "__main__":
    for part in train().split(50):
        main_loss, auxiliary_loss, conflicts = part.mean(0).tolist()
        print(
            f"main {main_loss:.3f}, auxiliary {auxiliary_loss:.3f}, {conflicts:.0%} conflicts"
        )
