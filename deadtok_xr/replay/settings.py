"""What an update depends on besides its tensors: the rule, its hyperparameters and torch's implementation flags."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from deadtok_xr.errors import InputError

ADAM = ("AdamW", "Adam")
RULES = (*ADAM, "SGD")


@dataclass(frozen=True)
class Settings:
    """The hyperparameters of one parameter group, under torch's names.

    Attributes
    ----------
    optimizer
        ``"AdamW"`` (decoupled weight decay), ``"Adam"`` (L2: the decay is added to the gradient) or ``"SGD"``.
    lr
        The constant learning rate; None if each step has its own.
    """

    optimizer: str
    lr: float | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    amsgrad: bool = False
    maximize: bool = False
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    foreach: bool | None = None
    fused: bool | None = None
    capturable: bool = False
    on_accelerator: bool = False

    @property
    def is_adam(self) -> bool:
        return self.optimizer in ADAM

    @property
    def decoupled_decay(self) -> float:
        """The weight decay that multiplies the weights themselves."""
        return self.weight_decay if self.optimizer == "AdamW" else 0.0

    @property
    def added_decay(self) -> float:
        """The weight decay that is added to the gradient."""
        return 0.0 if self.optimizer == "AdamW" else self.weight_decay

    @property
    def arithmetic(self) -> str:
        """The arithmetic that these flags select."""
        if self.fused:
            return "fused"
        if self.capturable and self.is_adam:
            return "capturable_single" if self.foreach is False else "capturable"
        return "foreach" if self.foreach else "single"


def read_settings(known: Mapping[str, Any], given: Mapping[str, Any], *, where: str) -> Settings:
    """Read the settings in a recording's attributes; given settings have precedence.

    Parameters
    ----------
    known
        Attributes of a recording: ``optimizer`` and ``hyperparameters``.
    given
        Hyperparameters under torch's names, and ``optimizer``; they have precedence over the recording's.
    where
        What needs the settings, for messages.

    Raises
    ------
    InputError
        If the optimizer is unknown or cannot be replayed, or if neither source gives Adam's betas and eps.
    """
    if not isinstance(given, Mapping):
        raise InputError(f"{where}: hyperparameters is a {type(given).__name__}; expected: a mapping of torch's names")
    recorded = known.get("hyperparameters")
    recorded = recorded if isinstance(recorded, Mapping) else {}
    recorded = {**respelled(recorded), **recorded}
    values = {**recorded, **given}
    rule = _rule(given.get("optimizer") or known.get("optimizer") or recorded.get("optimizer"), values, where)
    if rule in ADAM and not {"betas", "eps"} <= values.keys():
        missing = " and ".join(k for k in ("betas", "eps") if k not in values)
        raise InputError(
            f"{where}: the recording does not say the {missing} of {rule}: give hyperparameters={{'betas': (0.9, "
            "0.999), 'eps': 1e-8, 'weight_decay': ..., ...} (--hyperparameter betas=0.9,0.999) as the training had them"
        )
    unknown = [k for k in given if k not in Settings.__dataclass_fields__]
    if unknown:
        raise InputError(
            f"{where}: unknown hyperparameter {unknown[0]!r}; choose from {', '.join(Settings.__dataclass_fields__)}"
        )
    fields = {k: values[k] for k in Settings.__dataclass_fields__ if k in values and k != "optimizer"}
    for name, value in fields.items():
        _check(name, value, where, "hyperparameters" if name in given else "the recording")
    fields |= {name: bool(fields[name]) for name in _FLAGS if fields.get(name) is not None}
    fields |= {"betas": tuple(map(float, fields["betas"]))} if "betas" in fields else {}
    return Settings(rule, **fields)


_SPELLINGS = {
    "beta1": ("beta1", "beta_1", "b1", "adam_beta1", "adam_beta_1", "opt_beta1"),
    "beta2": ("beta2", "beta_2", "b2", "adam_beta2", "adam_beta_2", "opt_beta2"),
    "betas": ("betas", "adam_betas", "opt_betas"),
    "eps": ("eps", "epsilon", "adam_eps", "adam_epsilon", "opt_eps"),
    "lr": ("lr", "learning_rate", "adam_lr"),
    "weight_decay": ("weight_decay", "adam_weight_decay", "wd", "opt_weight_decay"),
    "amsgrad": ("amsgrad", "adam_amsgrad"),
    "maximize": ("maximize",),
}


def spelled(recorded: Mapping[str, Any], name: str) -> list[Any]:
    """Return the different values of a hyperparameter in a recording, under all its spellings, also nested."""
    found: list[Any] = []
    for key, value in recorded.items():
        if key.rpartition(".")[2].lower() in _SPELLINGS[name] and value is not None and value not in found:
            found.append(value)
    return found


def respelled(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Return the hyperparameters that a recording holds under other spellings, by torch's names.

    One that has several values, such as the weight decay of two parameter groups, is left out.
    """
    found = {name: values[0] for name in _SPELLINGS if len(values := spelled(recorded, name)) == 1}
    first, second = found.pop("beta1", None), found.pop("beta2", None)
    if "betas" not in found and first is not None and second is not None:
        found["betas"] = [first, second]
    return found


def names_optimizer(known: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
    """Return whether a recording, or the caller, names the optimizer."""
    recorded = known.get("hyperparameters")
    recorded = recorded if isinstance(recorded, Mapping) else {}
    if not isinstance(given, Mapping):
        return True  # read_settings refuses it
    return bool(given.get("optimizer") or known.get("optimizer") or recorded.get("optimizer"))


_FLAGS = ("amsgrad", "maximize", "nesterov", "foreach", "fused", "capturable", "on_accelerator")


def _check(name: str, value: Any, where: str, source: str) -> None:
    """Refuse a value that a hyperparameter cannot have."""
    if name == "betas":
        fits = isinstance(value, (tuple, list)) and len(value) == 2 and all(_number(b) and 0 <= b < 1 for b in value)
        needed = "two numbers from 0 to below 1"
    elif name in _FLAGS:
        fits, needed = value is None or (np.ndim(value) == 0 and value in (0, 1)), "True or False"
    elif name == "lr":
        fits, needed = value is None or _number(value), "a number"
    else:
        fits, needed = _number(value), "a number"
    if not fits:
        raise InputError(
            f"{where}: {name} is {value!r} in {source}; expected: {needed}: give hyperparameters={{{name!r}: ...}} "
            f"(--hyperparameter {name}=...)"
        )


def _number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool) and bool(np.isfinite(value))


def _rule(name: Any, values: Mapping[str, Any], where: str) -> str:
    if not isinstance(name, str) or not name:
        raise InputError(
            f"{where}: the recording does not say which optimizer made it: give hyperparameters={{'optimizer': "
            f"'AdamW', 'betas': ..., ...}} (--optimizer AdamW); known are {', '.join(RULES)}"
        )
    name = name.rpartition(".")[2]
    name = next((rule for rule in RULES if rule.lower() == name.lower()), name)
    if name == "Adam" and values.get("decoupled_weight_decay"):
        return "AdamW"
    if name not in RULES:
        raise InputError(f"{where}: the optimizer is {name}; only {', '.join(RULES)} of torch can be replayed")
    return name
