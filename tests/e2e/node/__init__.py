"""A node of a Kubernetes cluster without containers: pods are processes of this machine. README.md says how.

python -m tests.e2e.node --kubeconfig FILE --name gpu-0 --network 127.16.1.0/24 --label pool=policy --gpus 1
"""
