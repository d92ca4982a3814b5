"""Fails when a dependency of the crate itself declares a newer Rust than the crate does."""

import json
import sys

metadata = json.load(sys.stdin)
packages = {package["id"]: package for package in metadata["packages"]}
dependencies = {
    node["id"]: [
        dependency["pkg"]
        for dependency in node["deps"]
        if any(kind["kind"] in (None, "build") for kind in dependency["dep_kinds"])
    ]
    for node in metadata["resolve"]["nodes"]
}


def version(text):
    return tuple(int(part) for part in (text + ".0.0").split(".")[:3])


crate = next(package for package in packages.values() if package["name"] == "api_keys_driver")
oldest = crate["rust_version"]
reached, to_visit = set(), [crate["id"]]
while to_visit:
    package = to_visit.pop()
    if package not in reached:
        reached.add(package)
        to_visit += dependencies[package]

newer = [
    f"{package['name']} {package['version']} needs Rust {package['rust_version']}"
    for package in (packages[reached_id] for reached_id in reached)
    if package["rust_version"] and version(package["rust_version"]) > version(oldest)
]
print(f"{len(reached)} packages, oldest Rust {oldest}")
sys.exit("\n".join(newer) or None)
