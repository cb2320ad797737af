"""params.yaml as frozen, typed sections; every error names the line, what is allowed and the nearest word.

    params = load(Path("params.yaml"))
    params.select.batch  ->  20

Sections and their values: `tasks/params_sections.py`. The file is YAML 1.2 (`NO` is text, `1e-3` a number):
`tasks/params_text.py`. Plug-ins and their options: `tasks/params_plugins.py`. Loading has no side effect and imports no
plug-in.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from tasks import params_plugins
from tasks.errors import BadInput
from tasks.params_sections import Params
from tasks.params_text import explain, read


def load(path: Path) -> Params:
    """Read and validate params.yaml. Raises BadInput with file and line before any effect."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BadInput(f"{path} not found: this is not a campaign workspace. `gleaner init DIR` makes one.") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise BadInput(f"{path}:{line}: not UTF-8 ({error.reason} at byte {error.start}). Save it as UTF-8.") from None
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}.") from None
    return parse(text, str(path))


def parse(text: str, name: str = "params.yaml") -> Params:
    """Validate the text of a params.yaml; `name` is shown in errors."""
    document = read(text, name)
    try:
        params = Params.model_validate(document.value())
    except ValidationError as error:
        raise BadInput("\n".join(explain(document, Params, error.errors()))) from None
    params_plugins.check(params, document)
    return params
