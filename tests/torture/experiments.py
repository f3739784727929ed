"""All experiments there are, found by the name of their module."""

import importlib
import pkgutil
import re
from collections.abc import Sequence

import torture
from torture.harness import Experiment


def _find() -> list[Experiment]:
    names = [each.name for each in pkgutil.iter_modules(torture.__path__) if re.match(r"r\d\d_", each.name)]
    found = [importlib.import_module(f"torture.{name}").EXPERIMENT for name in sorted(names)]
    for name, experiment in zip(sorted(names), found, strict=True):
        if experiment.id != f"R{int(name[1:3])}":
            raise ValueError(f"{name} holds {experiment.id}")
    return found


EXPERIMENTS = _find()


def select(only: str) -> Sequence[Experiment]:
    """Those named, with commas between; all when none is.

    Raises:
        ValueError: there is none of that name.
    """
    wanted = [each.strip().upper() for each in only.split(",") if each.strip()]
    known = {each.id: each for each in EXPERIMENTS}
    unknown = [each for each in wanted if each not in known]
    if unknown:
        raise ValueError(f"no experiment {', '.join(unknown)}; there are {', '.join(known)}")
    return [known[each] for each in wanted] or EXPERIMENTS
