"""Several pods of one program, run with the Python of its SDK: the SDK is imported once, then each pod is forked.

Arguments: the program, and a JSON list with the environment of each pod. A pod starts once the port of the one before
answers. Ends as soon as one of them ends.
"""

import ast
import json
import os
import runpy
import socket
import sys
import time
from pathlib import Path

POLL_SECONDS = 0.02


def import_what_it_imports(program):
    """Run the imports at the top of the program."""
    tree = ast.parse(Path(program).read_text())
    imports = [each for each in tree.body if isinstance(each, ast.Import | ast.ImportFrom)]
    exec(compile(ast.Module(imports, []), program, "exec"), {})  # noqa: S102 - lines of the program itself


def forked(program, env):
    """Start a pod; returns its process id."""
    pid = os.fork()
    if pid == 0:
        os.environ.update(env)
        sys.argv = [program]
        runpy.run_path(program, run_name="__main__")
        sys.exit()
    return pid


def end_with_the_first(*, wait):
    """Exit if a pod has ended."""
    pid, status = os.waitpid(-1, 0 if wait else os.WNOHANG)
    if pid:
        sys.exit(f"a pod ended with exit code {os.waitstatus_to_exitcode(status)}")


def answers(port):
    """Return whether something listens."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


if __name__ == "__main__":
    program, pods = sys.argv[1], json.loads(sys.argv[2])
    import_what_it_imports(program)
    for env in pods:
        forked(program, env)
        while not answers(int(env.get("PORT") or env["ACP_PORT"])):
            end_with_the_first(wait=False)
            time.sleep(POLL_SECONDS)
    end_with_the_first(wait=True)
