"""``--replay FILE``: a batch that was not finite, once more and alone."""

from __future__ import annotations

import copy
from contextlib import contextmanager

import torch
from speechbrain import Stage

from unified_se_ss.errors import UserError
from unified_se_ss.training.brain import plain_name
from unified_se_ss.training.nonfinite import load_suspect, restore_random_state
from unified_se_ss.training.probe import batch_of, usable_item

SHOWN = 10


def replay(brain, loaders: dict, path) -> int:
    """Run a batch that training saved through forward pass, losses and gradients.

    Prints whether its tensors and the weights are finite, the first module whose output
    is not, the losses and the norms of their gradients, and each item's own losses.

    Arguments
    ---------
    brain : RecipeBrain
        Before its ``fit``; gets the weights that are in the file.
    loaders : dict
        The batch is made as that of "train" makes them.
    path : str or Path
        In the folder nonfinite of the run.

    Returns
    -------
    int
        0 if all is finite this time, else 1.
    """
    kept = load_suspect(path)
    brain.suspects.files = 0
    brain.on_fit_start()
    print(f"\nepoch {kept['epoch']}, batch {kept['batch']}: {len(kept['ids'])} items")
    print(f"not finite then    {', '.join(kept['found'])}")
    print(f"weights            {load_weights(brain, kept)}")
    batch = rebuilt(loaders["train"], kept)
    brain.modules.train()
    restore_random_state(kept["random"])

    bad = [n for n, t in tensors_of(batch).items() if not is_finite(t)]
    print(f"batch              {_verdict(bad)}")
    parameters = {plain_name(n): p for n, p in brain.modules.named_parameters()}
    bad_weights = [name for name, p in parameters.items() if not is_finite(p)]
    print(f"parameters         {_verdict(bad_weights)}")
    with first_nonfinite_module(brain.modules) as first, brain.training_ctx:
        _, losses = brain.losses_of(copy_to(batch, brain.device), Stage.TRAIN)
    print(f"forward pass       {first[0] if first else 'finite'}")
    finite = not (bad or bad_weights or first)
    for task, loss in losses._asdict().items():
        if loss is not None:
            finite &= report_loss(task, loss, parameters)
    print("\nitem by item (with random numbers of their own):")
    for name, means in item_losses(brain, batch):
        finite &= all(mean == mean and abs(mean) != float("inf") for mean in means.values())
        print(f"  {name:<40} " + ", ".join(f"{t} {mean:.4g}" for t, mean in means.items()))
    print("\nall is finite this time" if finite else "\nnot finite, as above")
    return 0 if finite else 1


def load_weights(brain, kept: dict) -> str:
    """Give the Brain the weights that the batch met; says in words which they are."""
    late = kept["steps_later"]
    if kept["weights"] is not None:
        try:
            brain.modules.load_state_dict(kept["weights"])
        except RuntimeError as error:
            raise UserError(
                "--replay: the file holds the weights of another network; use the YAML file "
                f"and the options of its run ({str(error).splitlines()[-1].strip()})"
            ) from error
        return f"as of {late} step(s) later" if late else "those that the batch met"
    if kept["checkpoint"] is None:
        return "new ones: the network was too large for the file, and had no checkpoint"
    for name, module in brain.checkpointer.recoverables.items():
        if isinstance(module, torch.nn.Module):
            file = f"{kept['checkpoint']}/{name}.ckpt"
            try:
                state = torch.load(file, map_location="cpu", weights_only=True)
            except OSError as error:
                raise UserError(f"--replay: {file} is not there any more") from error
            module.load_state_dict(state)
    return f"of the checkpoint before: {kept['checkpoint']}"


def rebuilt(loader, kept: dict):
    """The batch: made again from its keys, with the tensors that were saved."""
    indices = [key[1] if isinstance(key, tuple) else key for key in kept["keys"]]
    epoch = kept["epoch"]
    batch = batch_of(loader, indices, epoch) if indices else None
    if batch is None or len(batch) != len(kept["ids"]):
        # The data has changed; any item gives the shape of a batch.
        index = usable_item(loader)
        if index is None or not kept["tensors"]:
            raise UserError("--replay: the items of the batch cannot be made any more")
        batch = batch_of(loader, [index], epoch)
    batch.ids = list(kept["ids"])
    for name, tensor in kept["tensors"].items():
        setattr(batch, name, tensor)
    return batch


def tensors_of(batch) -> dict:
    """Signals of a batch by name: what has as long a last axis as the longest."""
    tensors = {
        name: value
        for name, value in vars(batch).items()
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.dim()
    }
    longest = max((t.shape[-1] for t in tensors.values()), default=0)
    return {name: t for name, t in tensors.items() if t.shape[-1] == longest}


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether a tensor is finite throughout."""
    return bool(tensor.detach().isfinite().all())


def _verdict(bad: list) -> str:
    """Names of what is not finite, the first ones."""
    if not bad:
        return "finite"
    more = f" and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
    return f"not finite: {', '.join(bad[:SHOWN])}{more}"


def copy_to(batch, device):
    """A batch on the device; the one that is given stays where it is."""
    return copy.copy(batch).to(device)


@contextmanager
def first_nonfinite_module(modules):
    """Gives a list that gets a line for the first module whose output is not finite."""
    first, handles = [], []

    def look(name, module):
        def hook(_, inputs, output):
            if not first and not _all_finite(output):
                came = "finite" if _all_finite(inputs) else "not finite"
                kind = type(module).__name__
                first.append(f"not finite first behind {name} ({kind}); its input: {came}")

        return hook

    for name, module in modules.named_modules():
        if name and not isinstance(module, torch.nn.ModuleDict):
            hook = look(plain_name(name), module)
            handles.append(module.register_forward_hook(hook))
    try:
        yield first
    finally:
        for handle in handles:
            handle.remove()


def _all_finite(value) -> bool:
    """Whether all tensors in what a module takes or gives are finite."""
    if isinstance(value, torch.Tensor):
        return not value.is_floating_point() or is_finite(value)
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return all(_all_finite(part) for part in value)
    return True


def report_loss(task: str, loss, parameters: dict) -> bool:
    """Print a loss and the norms of its gradients; returns whether all is finite."""
    mean = loss.mean()
    print(f"{task + ' loss':<18} {mean:.6g} over {int(loss.items)} items")
    finite = is_finite(loss.total)
    trained = {name: p for name, p in parameters.items() if p.requires_grad}
    if not loss.total.requires_grad:
        return finite
    gradients = torch.autograd.grad(
        loss.total, list(trained.values()), retain_graph=True, allow_unused=True
    )
    found = {name: g for name, g in zip(trained, gradients) if g is not None}
    bad = [name for name, gradient in found.items() if not is_finite(gradient)]
    print(f"{task + ' gradient':<18} {_verdict(bad)}")
    squares = {}
    for name, gradient in found.items():
        part = ".".join(name.split(".")[:2])
        squares[part] = squares.get(part, 0.0) + float(gradient.double().square().sum())
    for part, square in squares.items():
        print(f"  norm of {part:<30} {square**0.5:.4g}")
    return finite and not bad


def item_losses(brain, batch):
    """Each item's name and its losses, from a batch of it alone."""
    for number, name in enumerate(batch.ids):
        item = copy.copy(batch)
        for field, value in vars(batch).items():
            if isinstance(value, torch.Tensor) and value.dim() and len(value) == len(batch):
                setattr(item, field, value[number : number + 1].clone())
            elif isinstance(value, (list, tuple)) and len(value) == len(batch.ids):
                setattr(item, field, [value[number]])
        with torch.no_grad(), brain.training_ctx:
            _, losses = brain.losses_of(item.to(brain.device), Stage.TRAIN)
        pairs = losses._asdict().items()
        yield name, {task: float(loss.mean()) for task, loss in pairs if loss is not None}
