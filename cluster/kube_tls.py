"""Ray's TLS in a profile's pods: each makes its own certificate when it starts, signed by the cluster's authority.

The authority is a Secret of type kubernetes.io/tls that only the first, short-lived container of a pod sees. Where the
profile names none, Ray's ports speak without TLS behind their network policies.

Kind: pure.
"""

from typing import Final

from sote.cluster import kube as k
from sote.cluster.cluster_profile import Kubernetes

OWN: Final = "/etc/ray/tls"
AUTHORITY: Final = "/etc/ray/authority"
TLS, SIGNER = "ray-tls", "ray-authority"  # volumes
# ray/_common/tls_utils.py; written by sote.cluster.certificate
SETTINGS: Final = {
    "RAY_USE_TLS": "1",
    "RAY_TLS_SERVER_CERT": f"{OWN}/tls.crt",
    "RAY_TLS_SERVER_KEY": f"{OWN}/tls.key",
    "RAY_TLS_CA_CERT": f"{OWN}/ca.crt",
}
SMALL: Final = {"cpu": "100m", "memory": "256Mi", "ephemeral-storage": "64Mi"}


def environment(kubernetes: Kubernetes) -> tuple[k.Env, ...]:
    """What every process of Ray finds in its environment; nothing without an authority."""
    return tuple(k.Env(name=name, value=value) for name, value in SETTINGS.items()) if kubernetes.ray_ca_secret else ()


def mounts(kubernetes: Kubernetes) -> tuple[k.Mount, ...]:
    """What every container of Ray mounts."""
    return (k.Mount(name=TLS, mount_path=OWN, read_only=True),) if kubernetes.ray_ca_secret else ()


def volumes(kubernetes: Kubernetes) -> tuple[k.Volume, ...]:
    """The volumes of a pod: the authority, and the pod's own certificate."""
    if kubernetes.ray_ca_secret is None:
        return ()
    signer = k.SecretFiles(secret_name=kubernetes.ray_ca_secret)
    return k.Volume(name=SIGNER, secret=signer), k.Volume(name=TLS, empty_dir=k.EmptyDir(size_limit="1Mi"))


def makers(kubernetes: Kubernetes, image: str) -> tuple[k.Container, ...] | None:
    """The container that makes a pod's certificate before Ray starts. Nodes are reached by address, the head by its
    service's name, too."""
    if kubernetes.ray_ca_secret is None:
        return None
    names = ("$(POD_IP)", "127.0.0.1", "localhost", f"*.{kubernetes.namespace}.svc.cluster.local")
    address = k.ValueFrom(field_ref=k.FieldOf(field_path="status.podIP"))
    maker = k.Container(
        name="certificate",
        image=image,
        command=("python", "-m", "sote.cluster.certificate"),
        args=("--authority", AUTHORITY, "--out", OWN, *names),
        env=(k.Env(name="POD_IP", value_from=address),),
        resources=k.Resources.exactly(SMALL),
        volume_mounts=(
            k.Mount(name=SIGNER, mount_path=AUTHORITY, read_only=True),
            k.Mount(name=TLS, mount_path=OWN),
        ),
    )
    return (maker,)
