"""`sid generate`: one image or many to files, drawn in this process or by a server.

command.py -> one.py                     an image to a file
           -> run.py                     many, which goes on where it was stopped
                plan.py                  which images; class_folders.py: in which folders
                embedded.py, server.py   what draws them; window.py: how much at a time
                output.py                the folder or archive
"""

from service.bulk.errors import BulkError

__all__ = ["BulkError"]
