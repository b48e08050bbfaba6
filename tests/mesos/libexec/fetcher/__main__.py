"""Stand-in for mesos-fetcher: fetches the URIs of a CommandInfo into a sandbox.

The agent passes a FetcherInfo as JSON in MESOS_FETCHER_INFO. Plain paths and file:// are copied, http(s)://
and ftp:// are downloaded, and every other scheme is handed to `hadoop fs -copyToLocal URI DESTINATION`, as
Mesos does.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
import tarfile
import urllib.parse
import urllib.request
import zipfile

ARCHIVES = (".tar", ".tgz", ".tar.gz", ".tbz2", ".tar.bz2", ".txz", ".tar.xz")


def log(*words):
    print("fetcher:", *words, file=sys.stderr, flush=True)


def basename(uri):
    path = urllib.parse.urlsplit(uri).path if "://" in uri else uri
    name = path.rsplit("/", 1)[-1]
    if not name:
        raise ValueError(f"no file name in URI {uri}")
    return name


def download(uri, target, home):
    uri = uri.lstrip()
    scheme = uri.split("://", 1)[0] if "://" in uri else "file"
    if scheme == "file":
        path = local_path(uri, home)
        log("copying", path, "to", target)
        shutil.copyfile(path, target)
    elif scheme in ("http", "https", "ftp", "ftps"):
        log("downloading", uri, "to", target)
        with urllib.request.urlopen(uri) as source, open(target, "wb") as file:
            shutil.copyfileobj(source, file)
    else:
        download_with_hadoop(uri, target)


def local_path(uri, home):
    if uri.startswith("file://"):
        path = uri[len("file://") :]
        if path.startswith("localhost/"):
            path = path[len("localhost") :]
        if not path.startswith("/"):
            raise ValueError(f"file URI without an absolute path: {uri}")
        return path
    if uri.startswith("/"):
        return uri
    if not home:
        raise ValueError(f"relative path {uri}, and --frameworks_home is not set")
    return os.path.join(home, uri)


def download_with_hadoop(uri, target):
    installed = os.environ.get("HADOOP_HOME")
    hadoop = os.path.join(installed, "bin", "hadoop") if installed else "hadoop"
    if subprocess.run([hadoop, "version"], stdout=subprocess.DEVNULL, check=False).returncode:
        raise RuntimeError(f"'{hadoop} version' failed")
    log("downloading", uri, "with the Hadoop client to", target)
    subprocess.run([hadoop, "fs", "-copyToLocal", uri, target], check=True)


def extract(path, directory):
    """Whether it was an archive."""
    if path.endswith(ARCHIVES):
        with tarfile.open(path) as archive:
            archive.extractall(directory)
    elif path.endswith(".zip"):
        with zipfile.ZipFile(path) as archive:
            archive.extractall(directory)
    elif path.endswith(".gz"):
        target = os.path.join(directory, os.path.basename(path)[: -len(".gz")])
        with gzip.open(path) as source, open(target, "wb") as file:
            shutil.copyfileobj(source, file)
    else:
        return False
    return True


def fetch(item, sandbox, cache, home):
    uri = item["uri"]
    executable, unpacked = uri.get("executable", False), uri.get("extract", True)
    target = os.path.join(sandbox, uri.get("output_file") or basename(uri["value"]))
    os.makedirs(os.path.dirname(target), exist_ok=True)
    source = target
    action = item.get("action", "BYPASS_CACHE")
    if action != "BYPASS_CACHE":
        source = os.path.join(cache, item["cache_filename"])
    if action == "DOWNLOAD_AND_CACHE":
        os.makedirs(cache, exist_ok=True)
    if action in ("BYPASS_CACHE", "DOWNLOAD_AND_CACHE"):
        download(uri["value"], source, home)
    kept_whole = executable or not unpacked or not extract(source, sandbox)
    if kept_whole and source != target:
        shutil.copyfile(source, target)
    if executable:
        os.chmod(target, 0o755)


def main():
    info = json.loads(os.environ["MESOS_FETCHER_INFO"])
    sandbox = info["sandbox_directory"]
    for item in info.get("items", []):
        fetch(item, sandbox, info.get("cache_directory"), info.get("frameworks_home"))
    if info.get("user"):
        for directory, _, names in os.walk(sandbox):
            for path in (directory, *(os.path.join(directory, name) for name in names)):
                shutil.chown(path, info["user"])


try:
    main()
except Exception as error:
    log(f"{type(error).__name__}: {error}")
    sys.exit(1)
