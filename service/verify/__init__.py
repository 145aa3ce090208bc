"""`sid verify`: what drew an image, by its own words, and whether that is so.

command.py -> png_file.py   a PNG file that anybody may have made: its text, and its pixels
           -> redraw.py     the image once more, by this process or by a server
           -> comparison.py how far the two differ, and what that means
"""

from service.verify.png_file import PngError

__all__ = ["PngError"]
