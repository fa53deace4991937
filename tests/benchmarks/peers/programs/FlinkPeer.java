// Flink SQL: a watermark, a tumbling window, checkpoints exactly once. argv: servers, topic, events, dedup, folder.

import java.util.concurrent.atomic.AtomicLongArray;
import org.apache.flink.api.common.JobStatus;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;
import org.apache.flink.streaming.api.functions.sink.v2.DiscardingSink;
import org.apache.flink.table.api.bridge.java.StreamTableEnvironment;
import org.apache.flink.types.Row;

public class FlinkPeer {
    /** In this process, as is the whole cluster. */
    static final AtomicLongArray totals = new AtomicLongArray(4);

    static Row counted(Row row) {
        for (int i = 0; i < 4; i++) totals.addAndGet(i, ((Number) row.getField(i)).longValue());
        return row;
    }

    public static void main(String[] args) throws Exception {
        Configuration settings = new Configuration();
        settings.setString("parallelism.default", "2");
        settings.setString("execution.checkpointing.interval", "10 s");
        settings.setString("execution.checkpointing.mode", "EXACTLY_ONCE");
        settings.setString("execution.checkpointing.dir", "file://" + args[4] + "/checkpoints");
        settings.setString("table.exec.state.ttl", "2 h");
        settings.setString("taskmanager.memory.managed.size", "512m");
        var environment = StreamExecutionEnvironment.getExecutionEnvironment(settings);
        var tables = StreamTableEnvironment.create(environment);
        tables.executeSql(
            "CREATE TABLE events (event_id STRING, event_type STRING, event_time BIGINT, campaign_id BIGINT,"
            + " country STRING, device STRING, cost_micros BIGINT, happened AS TO_TIMESTAMP_LTZ(event_time, 3),"
            + " taken AS PROCTIME(), WATERMARK FOR happened AS happened - INTERVAL '3' HOUR)"
            + " WITH ('connector' = 'kafka', 'topic' = '" + args[1] + "', 'properties.bootstrap.servers' = '" + args[0]
            + "', 'properties.group.id' = 'flink-peer', 'scan.startup.mode' = 'earliest-offset',"
            + " 'scan.bounded.mode' = 'latest-offset', 'format' = 'json')");
        String source = "events";
        if (args[3].equals("1")) {
            tables.executeSql(
                "CREATE TEMPORARY VIEW distinct_events AS SELECT event_type, campaign_id, country, device, cost_micros, happened FROM ("
                + " SELECT *, ROW_NUMBER() OVER (PARTITION BY event_id ORDER BY taken ASC) AS occurrence FROM events)"
                + " WHERE occurrence = 1");
            source = "distinct_events";
        }
        var sums = tables.sqlQuery(
            "SELECT SUM(CASE WHEN event_type = 'impression' THEN 1 ELSE 0 END), SUM(CASE WHEN event_type = 'click' THEN 1 ELSE 0 END),"
            + " SUM(CASE WHEN event_type = 'conversion' THEN 1 ELSE 0 END), SUM(cost_micros)"
            + " FROM TABLE(TUMBLE(TABLE " + source + ", DESCRIPTOR(happened), INTERVAL '1' MINUTE))"
            + " GROUP BY window_start, window_end, campaign_id, country, device");
        tables.toDataStream(sums).map(FlinkPeer::counted).returns(Row.class).sinkTo(new DiscardingSink<>());
        var job = environment.executeAsync("peer");
        // Planning and starting a cluster is not counted.
        while (job.getJobStatus().get() != JobStatus.RUNNING) Thread.sleep(10);
        System.out.println("FIRST");
        job.getJobExecutionResult().get();
        System.out.printf("DONE %d %d %d %d%n", totals.get(0), totals.get(1), totals.get(2), totals.get(3));
        System.exit(0);
    }
}
