"""Whether the grids' carbon intensities can be had as the settings say, before anything starts."""

from collections.abc import Mapping

from clusters.hourly_files import BadSeries, read_series
from mesh.errors import BadSettings
from mesh.settings import Settings


def check_carbon(settings: Settings, environment: Mapping[str, str]) -> None:
    """Read every hourly file once, and look for the service's key.

    In a joined cluster the key is in the environment of the nodes that carry ingresses, which can't be seen from here.

    Raises:
        BadSettings: a file is malformed, with its line, or there is no key.
    """
    carbon = settings.carbon
    faults = []
    for zone, path in carbon.hourly.items():
        try:
            read_series(path)
        except BadSeries as bad:
            faults.append(f"carbon.hourly.{zone}: {bad}")
    if faults:
        raise BadSettings("\n".join(faults))
    is_joining = bool(environment.get("RAY_ADDRESS"))
    if carbon.source == "electricity-maps" and not is_joining and not environment.get(carbon.api_key_variable):
        raise BadSettings(f"carbon.source is electricity-maps: put its API key into {carbon.api_key_variable}")
