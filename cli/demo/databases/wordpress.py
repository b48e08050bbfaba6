"""WordPress with its files on a mounted volume, served by PHP's own web server, its database over TCP.

The files are those of Debian's packages. Nothing is fetched from anywhere: WordPress is told so.
"""

from __future__ import annotations

import asyncio
import json
import urllib.parse
from dataclasses import dataclass
from pathlib import Path

from moorage.cli.demo.databases import mariadb
from moorage.cli.demo.databases.programs import Program, as_user, program, run
from moorage.cli.machine_mounts import boot_clock
from moorage.cli.machines import MachineCluster
from moorage.wire.errors import Unavailable

USER, PORT = "www-data", 8080
FILES, CONTENT = Path("/usr/share/wordpress"), Path("/var/lib/wordpress/wp-content")
THEME = "twentytwentythree"
READY = "Development Server"
FETCH_TIMEOUT_S = 30.0
_CONFIG = f"""<?php
define('DB_NAME', 'wordpress'); define('DB_USER', 'wordpress'); define('DB_PASSWORD', '{mariadb.SECRET}');
define('DB_HOST', '127.0.0.1:{mariadb.PORT}'); define('DB_CHARSET', 'utf8mb4'); define('DB_COLLATE', '');
define('WP_HOME', 'http://' . ($_SERVER['HTTP_HOST'] ?? 'localhost')); define('WP_SITEURL', WP_HOME);
define('WP_HTTP_BLOCK_EXTERNAL', true); define('AUTOMATIC_UPDATER_DISABLED', true);
define('DISABLE_WP_CRON', true); define('WP_DEFAULT_THEME', '{THEME}');
$table_prefix = 'wp_';
if (!defined('ABSPATH')) define('ABSPATH', __DIR__ . '/');
require_once ABSPATH . 'wp-settings.php';
"""
# A post, and a file that it came with; what both are to say is on stdin.
_PUBLISH = """
require 'wp-load.php';
$said = json_decode(stream_get_contents(STDIN), true);
$post = wp_insert_post(['post_title' => $said['title'], 'post_content' => $said['text'],
                        'post_status' => 'publish'], true);
if (is_wp_error($post)) { fwrite(STDERR, $post->get_error_message()); exit(1); }
$file = wp_upload_bits('moorage.txt', null, $said['text']);
if ($file['error']) { fwrite(STDERR, $file['error']); exit(1); }
echo json_encode(['post' => $post, 'file' => $file['url']]);
"""
# Prints a page, whatever its status; with a body on stdin it is a POST.
_FETCH = """
$body = stream_get_contents(STDIN);
$http = ['ignore_errors' => true, 'timeout' => 20, 'follow_location' => 0];
if ($body !== '') $http += ['method' => 'POST', 'content' => $body,
                            'header' => 'Content-Type: application/x-www-form-urlencoded'];
$page = @file_get_contents($argv[1], false, stream_context_create(['http' => $http]));
if ($page === false) { fwrite(STDERR, 'no answer'); exit(1); }
echo $http_response_header[0], "\\n", $page;
"""


@dataclass(frozen=True)
class Post:
    title: str
    text: str
    page: str  # path and query
    file: str


class WordPress:
    def __init__(self, cluster: MachineCluster, host: str, volume: Path) -> None:
        self._cluster, self._host = cluster, host
        self._volume, self._site = volume, volume / "site"
        self.server = Program(f"php at {host}", cluster.directory / f"php-{host}.log")
        self._base = f"http://{cluster.network.addresses[host]}:{PORT}"

    async def make(self) -> None:
        """Copy the files onto the empty volume, and have the installer of WordPress do its part."""
        site = str(self._site)
        await run(*self._as("root", "cp", "-rL", str(FILES), site))
        await run(*self._as("root", "cp", "-rLT", str(CONTENT), f"{site}/wp-content"))
        await run(*self._as("root", "tee", f"{site}/wp-config.php"), stdin=_CONFIG)
        await run(*self._as("root", "chown", "-R", USER, site))
        await self.start()
        form = {
            "weblog_title": "Moorage",
            "user_name": "admin",
            "admin_password": mariadb.SECRET,
            "admin_password2": mariadb.SECRET,
            "pw_weak": "1",
            "admin_email": "admin@example.org",
            "blog_public": "0",
            "language": "",
        }
        said = await self.fetch("/wp-admin/install.php?step=2", urllib.parse.urlencode(form))
        if "wp-login.php" not in said or "200" not in said.splitlines()[0]:
            raise Unavailable(f"WordPress was not installed: {' '.join(said.split())[-500:]}")

    async def start(self) -> float:
        """Until it serves; when that was."""
        await self.server.start(
            *self._as(USER, program("php"), "-S", f"0.0.0.0:{PORT}", "-t", str(self._site))
        )
        return await self.server.wait_for(READY)

    async def publish(self, title: str, text: str) -> Post:
        """A post with a file, both on stable storage: the database syncs by itself, PHP does not."""
        chdir = as_user(
            self._cluster, self._host, USER, program("env"), f"--chdir={self._site}", program("php")
        )
        said = json.loads(await run(*chdir, "-r", _PUBLISH, stdin=json.dumps({"title": title, "text": text})))
        await run(*self._as("root", "sync", "--file-system", str(self._site)))
        return Post(title, text, f"/?p={said['post']}", urllib.parse.urlparse(said["file"]).path)

    async def fetch(self, path: str, body: str = "") -> str:
        """The status line and the page, as a client elsewhere sees it."""
        php = as_user(self._cluster, "c1", "root", program("php"))
        return await run(*php, "-r", _FETCH, "--", self._base + path, stdin=body)

    async def served(self, path: str, text: str) -> float:
        """Fetch a page until ``text`` is in it; when it was."""
        page = "nothing yet"
        end = boot_clock() + FETCH_TIMEOUT_S
        while boot_clock() < end:
            try:
                page = await self.fetch(path)
            except Unavailable as error:
                page = str(error)
            if text in page:
                return boot_clock()
            await asyncio.sleep(0.02)
        raise Unavailable(f"{self._base}{path} does not show {text!r}: {' '.join(page.split())[:500]}")

    def _as(self, user: str, name: str, *arguments: str) -> tuple[str, ...]:
        return as_user(self._cluster, self._host, user, program(name), *arguments)
