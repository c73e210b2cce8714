"""Run one script under an audit hook; started by `confide.ledger.run_derived` as a process of its own."""

import json
import os
import runpy
import sys


def _main() -> None:
    facts = json.loads(sys.stdin.read())
    parents, output = {os.path.realpath(p) for p in facts["parents"]}, os.path.realpath(facts["output"])
    mine = {os.path.realpath(p) for p in (sys.prefix, sys.base_prefix, sys.exec_prefix, os.path.dirname(os.__file__))}
    mine |= {
        "/usr/lib",
        "/lib",
        "/usr/share",
        "/etc/localtime",
        "/proc/self",
        "/proc/cpuinfo",
        "/sys/devices/system/cpu",
    }
    opened: set[str] = set()

    def refuse(what: str) -> None:
        # The message names the kind of thing, never the file: a path may be somebody's name.
        os.write(2, f"\nconfide: the job reached for {what}\n".encode())
        os._exit(3)

    def watch(event: str, args: tuple[object, ...]) -> None:
        if event in (
            "open",
            "os.listdir",
            "os.scandir",
            "os.rename",
            "os.remove",
            "os.link",
            "os.symlink",
            "shutil.copyfile",
        ):
            for place in args[:2] if event in ("os.rename", "os.link", "os.symlink", "shutil.copyfile") else args[:1]:
                if not isinstance(place, str | bytes | os.PathLike):
                    continue
                path = os.path.realpath(os.fsdecode(place))
                mode, flags = (args[1], args[2]) if event == "open" and len(args) > 2 else ("r", 0)
                writes = (isinstance(mode, str) and any(c in mode for c in "wax+")) or (
                    isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)
                )
                if event == "open" and not writes and path in parents:
                    opened.add(path)
                elif (
                    path == output
                    or (path in parents and not writes and event == "open")
                    or (
                        not writes
                        and event in ("open", "os.listdir", "os.scandir")
                        and any(path == root or path.startswith(root + os.sep) for root in mine)
                    )
                    or path in ("/dev/null", "/dev/urandom", os.path.realpath(facts["script"]))
                ):
                    continue
                else:
                    refuse("a file that is neither a parent nor its output")
        elif event.startswith("socket."):
            refuse("the network")
        elif event in (
            "subprocess.Popen",
            "os.system",
            "os.exec",
            "os.posix_spawn",
            "os.fork",
            "os.forkpty",
            "pty.spawn",
        ):
            refuse("another program")
        elif event in ("sqlite3.connect", "sqlite3.connect/handle"):
            refuse("a database")

    sys.argv = [facts["script"], *facts["parents"], facts["output"]]
    stdout, sys.stdout = sys.stdout, sys.stderr
    sys.addaudithook(watch)
    runpy.run_path(facts["script"], run_name="__main__")
    stdout.write(f"\n{len(opened)}\n")
    stdout.flush()


if __name__ == "__main__":
    _main()
