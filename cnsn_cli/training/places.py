"""Where the relative names in the request of a run are looked for.

The state keeps the working folder in which the run was started, so that the run can be resumed elsewhere.
`run` and `recorder` call this module.
"""

import os
from collections.abc import Collection
from pathlib import Path

from cnsn_cli.data.origin import HUB, NAMED, hub_name, is_hub
from cnsn_cli.errors import HubError
from cnsn_cli.files.hub import Address, path_of
from cnsn_cli.training.request import Request

PLACES = ("data", "test_data", "data_dir", "freeze_base")  # what a resumed run reads


def working_folder() -> str | None:
    """The working folder; None if it was removed, or if its name is no UTF-8, which a state cannot hold."""
    try:
        folder = os.getcwd()
        folder.encode()
    except (OSError, UnicodeEncodeError):
        return None
    return folder


def located(request: Request, folder: str | None, given: Collection[str] = ()) -> Request:
    """The request, with each relative name that leads to something in `folder` made absolute.

    All other names are looked for in the working folder, as are the names of values that were `given` now. An
    address of the Hub that was not given now becomes its copy in the cache, for a name that a file records is
    never fetched. Raises HubError if there is no copy.
    """
    request = _without_network(request, given)
    if folder is None:
        return request
    names = {name: getattr(request, name) for name in PLACES if name not in given}
    return request.with_changes({name: _in(folder, value) for name, value in names.items() if value})


def _in(folder: str, value: str) -> str:
    prefix = HUB if is_hub(value) else ""
    place = Path(folder, hub_name(value))
    return f"{prefix}{place}" if value not in NAMED and place.exists() else value


def _without_network(request: Request, given: Collection[str]) -> Request:
    base = path_of(request.freeze_base or "")
    if not isinstance(base, Address) or "freeze_base" in given:
        return request
    try:
        return request.with_changes({"freeze_base": base.cached})
    except HubError as error:
        raise HubError(f"{error}: to fetch it again, give --freeze-base {base}") from error
