"""Images into a registry with their layers as they are: within one machine, gzip costs each push and pull more than it saves.

A layer's digest is then the image's own diff ID, so that what the registry has is known before anything is read.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path
from typing import IO, Any

import requests

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
SECONDS = 600.0


class Registry:
    """A repository of a registry that speaks the OCI distribution specification.

    Args:
        url: of the registry, such as https://127.0.0.1:5000.
        repository: name of the images in it.
        authority: certificate that it is trusted by.
    """

    def __init__(self, url: str, repository: str, authority: Path) -> None:
        self.url, self.repository = url, f"{url}/v2/{repository}"
        self.session = requests.Session()
        self.session.trust_env = False  # a proxy is not asked for what is on this machine
        self.session.verify = str(authority)

    def _call(self, method: str, url: str, **options: Any) -> requests.Response:
        answer = self.session.request(method, url, timeout=SECONDS, **options)
        answer.raise_for_status()
        return answer

    def digest(self, kind: str, reference: str) -> str | None:
        """The digest of a blob or a manifest (kind: blobs, manifests); None where it is not there."""
        address = f"{self.repository}/{kind}/{reference}"
        answer = self.session.head(address, timeout=SECONDS, headers={"Accept": MANIFEST})
        return answer.headers["Docker-Content-Digest"] if answer.status_code == 200 else None

    def put_blob(self, digest: str, content: IO[bytes] | bytes) -> None:
        """Upload a blob; the registry checks its digest."""
        begun = self._call("POST", f"{self.repository}/blobs/uploads/")
        place = requests.compat.urljoin(self.url, begun.headers["Location"])
        headers = {"Content-Type": "application/octet-stream"}
        self._call("PUT", place, params={"digest": digest}, data=content, headers=headers)

    def put_manifest(self, tag: str, manifest: bytes) -> None:
        """Upload a manifest under a tag."""
        self._call("PUT", f"{self.repository}/manifests/{tag}", data=manifest, headers={"Content-Type": MANIFEST})

    def push(self, archive: Path, tag: str) -> str:
        """Upload the only image of an archive that `docker save` made, what is there already left out; the manifest's digest.

        Raises:
            requests.RequestException: the registry did not answer, or refused.
        """
        with tarfile.open(archive) as saved:

            def member(name: str) -> IO[bytes]:
                file = saved.extractfile(name)  # follows the link of a layer that is in the archive twice
                assert file is not None, name
                return file

            [image] = json.load(member("manifest.json"))
            config = member(image["Config"]).read()
            config_digest = f"sha256:{hashlib.sha256(config).hexdigest()}"
            layers = dict(zip(json.loads(config)["rootfs"]["diff_ids"], image["Layers"], strict=True))
            for digest, name in layers.items():
                if self.digest("blobs", digest) is None:
                    self.put_blob(digest, member(name))
            self.put_blob(config_digest, config)
            sizes = {digest: member(name).seek(0, 2) for digest, name in layers.items()}
        manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": {"mediaType": CONFIG, "digest": config_digest, "size": len(config)},
                "layers": [{"mediaType": LAYER, "digest": digest, "size": size} for digest, size in sizes.items()],
            }
        ).encode()
        self.put_manifest(tag, manifest)
        return f"sha256:{hashlib.sha256(manifest).hexdigest()}"
