// Kafka Streams: a window, an aggregate, exactly once. argv: servers, topic, events, dedup, folder.

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.nio.ByteBuffer;
import java.time.Duration;
import java.util.Properties;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicLongArray;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.KStream;
import org.apache.kafka.streams.kstream.Materialized;
import org.apache.kafka.streams.kstream.TimeWindows;
import org.apache.kafka.streams.processor.TimestampExtractor;
import org.apache.kafka.streams.processor.api.FixedKeyProcessor;
import org.apache.kafka.streams.processor.api.FixedKeyProcessorContext;
import org.apache.kafka.streams.processor.api.FixedKeyRecord;
import org.apache.kafka.streams.state.Stores;
import org.apache.kafka.streams.state.WindowStore;

public class KafkaStreamsPeer {
    static final ObjectMapper JSON = new ObjectMapper();
    static final Duration GRACE = Duration.ofHours(3);
    static final AtomicInteger seen = new AtomicInteger();
    static final AtomicLongArray totals = new AtomicLongArray(4);

    static JsonNode parsed(byte[] value) {
        try {
            return JSON.readTree(value);
        } catch (java.io.IOException error) {
            throw new java.io.UncheckedIOException(error);
        }
    }

    /** The event's own time. */
    public static class EventTime implements TimestampExtractor {
        public long extract(ConsumerRecord<Object, Object> record, long partitionTime) {
            return ((JsonNode) record.value()).get("event_time").asLong();
        }
    }

    /** Drops an event whose id was seen within the grace: a window store, as the documentation's deduplication example. */
    static class Distinct implements FixedKeyProcessor<byte[], JsonNode, JsonNode> {
        FixedKeyProcessorContext<byte[], JsonNode> context;
        WindowStore<String, Long> ids;

        public void init(FixedKeyProcessorContext<byte[], JsonNode> context) {
            this.context = context;
            ids = context.getStateStore("ids");
        }

        public void process(FixedKeyRecord<byte[], JsonNode> record) {
            String id = record.value().get("event_id").asText();
            long time = record.timestamp();
            boolean copy;
            try (var found = ids.fetch(id, time - GRACE.toMillis(), time + GRACE.toMillis())) {
                copy = found.hasNext();
            }
            if (!copy) {
                ids.put(id, time, time);
                context.forward(record);
            }
        }
    }

    static byte[] added(JsonNode event, byte[] before) {
        ByteBuffer sums = ByteBuffer.wrap(before.clone());
        int kind = switch (event.get("event_type").asText()) {
            case "impression" -> 0;
            case "click" -> 1;
            default -> 2;
        };
        long cost = event.get("cost_micros").asLong();
        sums.putLong(8 * kind, sums.getLong(8 * kind) + 1);
        sums.putLong(24, sums.getLong(24) + cost);
        totals.addAndGet(kind, 1);
        totals.addAndGet(3, cost);
        return sums.array();
    }

    public static void main(String[] args) throws Exception {
        int events = Integer.parseInt(args[2]);
        Properties settings = new Properties();
        settings.put(StreamsConfig.APPLICATION_ID_CONFIG, "peer-" + System.nanoTime());
        settings.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, args[0]);
        settings.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.EXACTLY_ONCE_V2);
        settings.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, 2);
        settings.put(StreamsConfig.STATE_DIR_CONFIG, args[4]);
        settings.put(StreamsConfig.REPLICATION_FACTOR_CONFIG, 1);
        settings.put(ConsumerConfig.AUTO_OFFSET_RESET_CONFIG, "earliest");
        var values = Serdes.serdeFrom((topic, node) -> node.toString().getBytes(), (topic, bytes) -> parsed(bytes));
        var done = new CountDownLatch(1);

        StreamsBuilder builder = new StreamsBuilder();
        KStream<byte[], JsonNode> stream = builder.stream(
            args[1], Consumed.with(Serdes.ByteArray(), values).withTimestampExtractor(new EventTime()));
        stream = stream.peek((key, event) -> {
            int count = seen.incrementAndGet();
            if (count == 1) System.out.println("FIRST");
            if (count == events) done.countDown();
        });
        if (args[3].equals("1")) {
            builder.addStateStore(Stores.windowStoreBuilder(
                Stores.persistentWindowStore("ids", GRACE.multipliedBy(2), GRACE.multipliedBy(2), false),
                Serdes.String(), Serdes.Long()));
            stream = stream.processValues(Distinct::new, "ids");
        }
        stream.groupByKey(org.apache.kafka.streams.kstream.Grouped.with(Serdes.ByteArray(), values))
            .windowedBy(TimeWindows.ofSizeAndGrace(Duration.ofMinutes(1), GRACE))
            .aggregate(() -> new byte[32], (key, event, sums) -> added(event, sums),
                Materialized.with(Serdes.ByteArray(), Serdes.ByteArray()));

        KafkaStreams streams = new KafkaStreams(builder.build(), settings);
        streams.start();
        done.await();
        // The last event is folded, committed and in the changelog only now.
        streams.close();
        System.out.printf("DONE %d %d %d %d%n", totals.get(0), totals.get(1), totals.get(2), totals.get(3));
        System.exit(0);
    }
}
