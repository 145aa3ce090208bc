"""Take the image of the playground in docs/images (`make docs`; needs Debian's Chromium)."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

TARGET = Path(__file__).parent / "images" / "playground.png"
SHOWN = "?model=avatars&class_label=Critter&seed=16&toward=25&mix=0.5&n=24"


def main() -> None:
    """Serve the shipped models, and take the image of what a visitor sees."""
    command = [sys.executable, "-m", "service.cli", "serve", "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert server.stdout is not None
        announced = re.search(r"http://[0-9.:]+", server.stdout.readline())
        if announced is None:
            raise SystemExit("the server did not start: try `sid serve`")
        with sync_playwright() as playwright:
            chromium = shutil.which("chromium")
            browser = playwright.chromium.launch(executable_path=chromium)
            for _ in range(2):  # the second visitor finds everything warm
                page = browser.new_page(viewport={"width": 1200, "height": 1180})
                page.goto(f"{announced[0]}/{SHOWN}")
                page.wait_for_selector("#tiles li:last-child img")
                page.wait_for_selector("#class-list label:last-child img")
            page.screenshot(path=TARGET)
            browser.close()
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
