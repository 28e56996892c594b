# bunny with its own recovery: PORT QUEUE. Publishes and consumes, and prints "served" for
# each message that comes back, until it is killed.
require 'bunny'

$stdout.sync = true
conn = Bunny.new(host: '127.0.0.1', port: ARGV[0].to_i, heartbeat: 4, network_recovery_interval: 1,
                 logger: Logger.new(File::NULL))
conn.start
ch = conn.create_channel
ch.prefetch(10)
queue = ch.queue(ARGV[1], durable: true)
queue.subscribe(manual_ack: true) do |info, _, _|
  ch.ack(info.delivery_tag)
  puts 'served'
end
loop do
  begin
    ch.default_exchange.publish('x', routing_key: ARGV[1])
  rescue StandardError => e
    puts "#{e.class}: #{e.message}"
  end
  sleep 0.25
end
