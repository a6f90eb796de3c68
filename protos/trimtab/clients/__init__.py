"""Thin typed clients of the services. They need grpcio, protobuf and googleapis-common-protos only."""
