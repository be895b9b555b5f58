"""Draw the dashboard of a running server as SVG: screenshot.py FILE [WIDTH HEIGHT [KEY ...]].

The server is the one of APPLIANCE_HOME. What the picture shows is what the server says.
"""

import asyncio
import sys
from pathlib import Path

from appliance.config.paths import find_paths
from tui.app import ApplianceApp
from tui.cli import make_client
from tui.client.session import Session
from tui.client.target import Target
from tui.theme import DEFAULT

WATCHED_S = 20.0


async def draw(file: Path, size: tuple[int, int], keys: list[str]) -> None:
    target = Target(socket=str(find_paths().admin_socket))
    session = Session(
        make_client=lambda: make_client(target, None),
        target=str(target),
        readonly=False,
        ascii=False,
    )
    app = ApplianceApp(session, theme=DEFAULT)
    async with app.run_test(size=size) as pilot:
        await pilot.pause(WATCHED_S)
        for key in keys:
            await pilot.press(key)
            await pilot.pause(1.0)
        await asyncio.to_thread(file.write_text, app.export_screenshot())


if __name__ == "__main__":
    width, height = (int(each) for each in sys.argv[2:4]) if len(sys.argv) > 3 else (120, 30)
    asyncio.run(draw(Path(sys.argv[1]), (width, height), sys.argv[4:]))
