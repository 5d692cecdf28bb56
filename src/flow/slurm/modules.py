"""What `module load` gives where a machine has no modules: a table of the user's, by the modules' names.

```yaml
pytorch/2.3: {image: "pytorch/pytorch:2.3.0-cuda12.1-cudnn8-runtime"}
cuda/12.1: {path: [/opt/cuda/bin], env: {CUDA_HOME: /opt/cuda}}
gcc: {env: {CC: gcc-13}}
```
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flow.errors import ValidationError

if TYPE_CHECKING:
    from flow.config import TaskConfig

_LOAD = re.compile(r"^\s*(?:module\s+(?:load|add)|ml)\s+([^#;&|\n]+)", re.MULTILINE)
_EXAMPLE = "write `cuda/12.1: {path: [/opt/cuda/bin], env: {CUDA_HOME: /opt/cuda}}`"


def read_modules(file: Path) -> dict[str, dict[str, Any]]:
    """The table in a file: an image, or variables (`env`) and folders of PATH (`path`), for each module.

    Raises ValidationError where it cannot be read, or is none.
    """
    import yaml

    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise ValidationError(f"cannot read the modules in `{file}`: {error}") from error
    table = {} if found is None else found
    if not isinstance(table, dict):
        raise ValidationError(f"`{file}` is no table of modules", suggestions=[_EXAMPLE])
    for name, module in table.items():
        if not isinstance(name, str) or not _is_module(module):
            raise ValidationError(f"`{file}`: `{name}` is no module", suggestions=[_EXAMPLE])
    return table


def with_image(config: TaskConfig, table: Mapping[str, Mapping[str, Any]], notes: list[str]) -> TaskConfig:
    """The task in the image of the first module that its script loads and that has one; `notes` gains a word of it."""
    for line in _LOAD.findall(config.batch.script if config.batch and config.image is None else ""):
        for name in line.split():
            image = table.get(name, table.get(name.partition("/")[0], {})).get("image")
            if image:
                notes.append(f"`module load {name}` is the image `{image}` here")
                return config.model_copy(update={"image": image})
    return config


def _is_module(module: object) -> bool:
    if not isinstance(module, dict) or not module.keys() <= {"image", "env", "path"}:
        return False
    env, path = module.get("env", {}), module.get("path", [])
    folders = isinstance(path, list) and all(isinstance(one, str) for one in path)
    named = isinstance(env, dict) and all(re.fullmatch(r"[A-Za-z_]\w*", str(one), re.ASCII) for one in env)
    return folders and named and isinstance(module.get("image", ""), str)
