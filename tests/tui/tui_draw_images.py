"""Draw the pictures of the documentation: `python tests/tui/tui_draw_images.py docs/images`."""

import asyncio
import sys
from pathlib import Path

import tui_scenes as scenes
from tui_fake_client import FakeClient, make_app
from tui_pilot import open_live, open_logs, until

PICTURES: dict[str, tuple[tuple[int, int], tuple[str, ...]]] = {
    "dashboard": ((80, 24), ("j",)),
    "dashboard-wide": ((160, 48), ("j",)),
    "load": ((80, 24), ("G", "L")),
    "failure": ((80, 24), ("G", "k", "enter")),
    "logs": ((80, 24), ("3", "e")),
}


async def draw(folder: Path) -> None:
    for name, (size, keys) in PICTURES.items():
        app = make_app(FakeClient(scenes.snapshot()))
        async with app.run_test(size=size) as pilot:
            if keys[0] == "3":
                await open_logs(pilot, *keys[1:])
            else:
                await open_live(pilot)
                for second in range(40):
                    load = 9 + 3 * ((second * 7) % 5) / 4
                    app.session.feed.requests.add(900.0 + second, load)
                    app.session.feed.tokens.add(900.0 + second, 200 * load + (second % 7) * 90)
                app._paint()
                await pilot.press(*keys)
                await pilot.pause(0.5)
            await until(pilot, lambda: True)
            (folder / f"{name}.svg").write_text(app.export_screenshot())


if __name__ == "__main__":
    asyncio.run(draw(Path(sys.argv[1])))
