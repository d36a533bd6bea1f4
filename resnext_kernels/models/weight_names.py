"""The names that parameters carry in a checkpoint, and this package's own for them.

Accepted names of parameters, told apart by themselves:
- torchvision's and timm's, which are this package's own;
- the numbers of the Torch7 release (github.com/facebookresearch/ResNeXt) after conversion to
  PyTorch, `4.0.0.0.0.0.weight` or `features.4.0.0.0.0.0.weight`.
Prefixes that wrappers add (`module.`, `model.`, `_orig_mod.`), checkpoints that keep the weights
under "state_dict" or "model", and other usual names of the classifier are all understood.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any

from torch import Tensor

_WRAPPERS = ("state_dict", "model")
_PREFIXES = ("module.", "model.", "_orig_mod.")
_CLASSIFIER = re.compile(r"(last_linear|classifier|head\.fc|head)\.(?=(weight|bias)$)")
_NUMBERED = re.compile(r"(?:features\.)?(\d+(?:\.\d+)*)\.(\w+)")
_BRANCHES = (
    ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3"),
    ("downsample.0", "downsample.1"),
)


def canonical_state_dict(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a checkpoint in any accepted naming, under torchvision's names.

    Raises:
        ValueError: an entry is not a tensor, or numbered names do not form a ResNeXt.
    """
    for wrapper in _WRAPPERS:
        if isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    strangers = [
        key
        for key, value in state.items()
        if not (isinstance(key, str) and isinstance(value, Tensor))
    ]
    if strangers or not state:
        names = listed(map(str, strangers))
        found = f"not tensors by name: {names}" if strangers else "an empty mapping"
        raise ValueError(f"weights hold {found}; expected a state_dict, from name to tensor")
    state = _without_prefixes(state)
    return _without_numbers({_CLASSIFIER.sub("fc.", key): state[key] for key in state})


def _without_prefixes(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in state):
            return _without_prefixes({key.removeprefix(prefix): state[key] for key in state})
    return state


def _path(match: re.Match[str]) -> tuple[int, ...]:
    return tuple(int(number) for number in match[1].split("."))


def _without_numbers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    numbered = {key: match for key in state if (match := _NUMBERED.fullmatch(key))}
    modules = _names_of_numbers({_path(match) for match in numbered.values()})
    names = {key: f"{modules[_path(match)]}.{match[2]}" for key, match in numbered.items()}
    return {names.get(key, key): value for key, value in state.items()}


def _names_of_numbers(paths: Iterable[tuple[int, ...]]) -> dict[tuple[int, ...], str]:
    """torchvision's names of a numbered ResNeXt's modules that hold parameters.

    A module's path is the list of places from the outermost container inwards. Inside a block
    (stage, block, 0, branch, ...), branch 0 is the residual and branch 1 the projection; how deep
    the containers nest there differs between releases, but never the order. Modules outside the
    blocks are the stem and the classifier.
    """
    paths = sorted(paths)
    outside = [path for path in paths if len(path) < 4]
    inside = [path for path in paths if len(path) >= 4]
    if len(outside) > 3:
        raise ValueError(
            f"weights: {len(outside)} numbered modules with parameters stand outside the blocks; "
            "expected a ResNeXt's stem convolution, its normalisation and the classifier"
        )
    names = dict(zip(outside, ("conv1", "bn1", "fc"), strict=False))
    stages = sorted({path[0] for path in inside})
    for (stage, block, branch), group in groupby(inside, lambda path: (*path[:2], path[3])):
        members = list(group)
        roles = _BRANCHES[branch] if branch < len(_BRANCHES) else ()
        if len(members) != len(roles):
            raise ValueError(
                f"weights: branch {branch} of block {stage}.{block} has {len(members)} modules "
                f"with parameters; expected {len(roles)}, as in a ResNeXt"
            )
        prefix = f"layer{stages.index(stage) + 1}.{block}."
        names.update(zip(members, (prefix + role for role in roles), strict=True))
    return names


def listed(keys: Iterable[str], most: int = 20) -> str:
    """Sorted names for a message, those beyond ``most`` counted."""
    keys = sorted(keys)
    rest = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(keys[:most]) + rest
