"""Values that tests render the chart with: each switch on its own, and all at once. For tests."""

from __future__ import annotations

from tests.integration.charts.rendering import Values

DATABASE: Values = {"existingSecret": "ratings", "key": "url"}
EVERYTHING: Values = {
    "fullnameOverride": "rlhf",
    "images": {"registry": "registry.example.com/trimtab/", "tag": "1.2.3", "pullSecrets": ["pull"]},
    "operator": {
        "namespaces": ["team-a", "team-b"],
        "kueue": {"version": "v1beta2"},
        "nodeSelector": {"pool": "system"},
        "tolerations": [{"key": "system", "operator": "Exists"}],
        "priorityClassName": "system-cluster-critical",
        "podLabels": {"team": "ml"},
        "podAnnotations": {"sidecar.istio.io/inject": "false"},
        "env": [{"name": "TZ", "value": "UTC"}],
    },
    "serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/trimtab"}},
    "queue": {
        "valkey": {
            "enabled": True,
            "maxMemory": "6gb",
            "storageClassName": "fast",
            "allowedNamespaces": ["keda"],
        }
    },
    "preference": {
        "enabled": True,
        "database": DATABASE | {"cidrs": ["10.1.0.0/16"]},
        "accessKeys": {"existingSecret": "keys"},
        "tls": {"enabled": True, "clientCa": False},
        "config": '[[annotators]]\nname = "auto"\nrule = "sentiment"\n\n[web]\nrankings = false\n',
        "pages": {
            "enabled": True,
            "publicUrl": "https://label.example.org",
            "allowedNamespaces": ["ingress"],
        },
        "allowedNamespaces": ["people"],
    },
    "certManager": {
        "enabled": True,
        "certificates": [
            {"name": "helpful-tls", "dnsNames": ["helpful.team-a.svc"]},
            {"name": "trainer-a", "client": True},
        ],
    },
    "networkPolicies": {"apiServer": {"cidrs": ["10.0.0.1/32"]}},
    "monitoring": {
        "podMonitors": True,
        "prometheusRules": True,
        "dashboards": True,
        "labels": {"release": "prometheus"},
    },
}
MATRIX: dict[str, Values] = {
    "defaults": {},
    "namespaces": {"operator": {"namespaces": ["team-a", "team-b"]}},
    "own addresses": {
        "operator": {"listenOnPodIp": True},
        "queue": {"valkey": {"enabled": True}},
        "preference": {"enabled": True, "database": DATABASE},
    },
    "flavors": {"operator": {"kueue": {"flavors": True}}},
    "no kueue": {"operator": {"kueue": {"enabled": False}}},
    "all namespaces": {"operator": {"allNamespaces": True}},
    "no rights": {"rbac": {"create": False, "userRoles": False}, "serviceAccount": {"create": False}},
    "valkey": {"queue": {"valkey": {"enabled": True}}},
    "valkey, own secret": {"queue": {"existingSecret": "queue", "valkey": {"enabled": True}}},
    "external queue": {"queue": {"externalUrl": "redis://user:pass@redis.example.com:6380/0"}},
    "preference": {"preference": {"enabled": True, "database": DATABASE}},
    "preference, own certificates": {
        "preference": {"enabled": True, "database": DATABASE, "tls": {"enabled": True, "secretName": "own"}}
    },
    "issuer": {
        "certManager": {
            "enabled": True,
            "issuerRef": {"name": "corporate", "kind": "ClusterIssuer", "group": "cert-manager.io"},
            "certificates": [{"name": "trainer-a", "client": True}],
        }
    },
    "monitoring": {"monitoring": {"podMonitors": True, "prometheusRules": True, "dashboards": True}},
    "nobody scrapes": {"monitoring": {"namespace": ""}},
    "no policies": {"networkPolicies": {"enabled": False}},
    "everything": EVERYTHING,
}
