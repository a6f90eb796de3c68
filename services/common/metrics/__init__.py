"""What completions are measured by, with intervals. Numpy; a library of its own where a metric needs one."""

from services.common.metrics.base import AdditiveMetric, Metric, PooledMetric, Sample
from services.common.metrics.registry import make_metric, metric_names

__all__ = ["AdditiveMetric", "Metric", "PooledMetric", "Sample", "make_metric", "metric_names"]
