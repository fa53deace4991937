"""PySpark Structured Streaming: a watermark, a window, an aggregate. argv: servers, topic, events, dedup, folder."""

import sys
from pathlib import Path

from pyspark.sql import SparkSession
from pyspark.sql import functions as f

SERVERS, TOPIC, EVENTS, DEDUP, FOLDER = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == "1", sys.argv[5]
CONNECTOR = "org.apache.spark:spark-sql-kafka-0-10_2.13:4.2.0"
SCHEMA = "event_id string, event_type string, event_time long, campaign_id long, country string, device string, cost_micros long"
KEYS = ("campaign_id", "country", "device")
# A second or two of events: the whole backlog in one batch would be no stream.
BATCH = 250_000

spark = (
    SparkSession.builder.master("local[2]").appName("peer").config("spark.jars.packages", CONNECTOR)
    .config("spark.sql.shuffle.partitions", 4).config("spark.ui.enabled", "false").config("spark.driver.memory", "4g")
    .config("spark.sql.streaming.stateStore.providerClass",
            "org.apache.spark.sql.execution.streaming.state.RocksDBStateStoreProvider")
    .getOrCreate()
)  # fmt: skip
spark.sparkContext.setLogLevel("ERROR")
raw = (
    spark.readStream.format("kafka").option("kafka.bootstrap.servers", SERVERS).option("subscribe", TOPIC)
    .option("startingOffsets", "earliest").option("maxOffsetsPerTrigger", BATCH).load()
)  # fmt: skip
events = raw.select(f.from_json(f.col("value").cast("string"), SCHEMA).alias("e")).select("e.*")
events = events.withColumn("time", f.timestamp_millis("event_time")).withWatermark("time", "3 hours")
if DEDUP:
    events = events.dropDuplicatesWithinWatermark(["event_id"])
sums = events.groupBy(f.window("time", "1 minute"), *KEYS).agg(
    *(f.sum((f.col("event_type") == kind).cast("long")).alias(kind) for kind in ("impression", "click", "conversion")),
    f.sum("cost_micros").alias("cost"),
)
VALUES = ("impression", "click", "conversion", "cost")
RESULTS = f"{FOLDER}/results"


def write(batch, number) -> None:
    """Each batch gives the new sums of the windows that it changed."""
    batch.withColumn("batch", f.lit(number)).write.parquet(f"{RESULTS}/batch={number}")


query = (
    sums.writeStream.outputMode("update")
    .foreachBatch(write)
    .option("checkpointLocation", f"{FOLDER}/checkpoint")
    .trigger(availableNow=True)
)
print("FIRST", flush=True)
query.start().awaitTermination()
print("STOP", flush=True)
newest = f.max_by(f.struct(*VALUES), "batch").alias("sums")
rows = spark.read.parquet(*(str(path) for path in sorted(Path(RESULTS).iterdir())))
last = rows.groupBy("window", *KEYS).agg(newest).select("sums.*")
print("DONE", *last.agg(*(f.sum(name) for name in VALUES)).first(), flush=True)
spark.stop()
