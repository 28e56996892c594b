// The Java client with its own recovery: PORT QUEUE. Publishes and consumes, and prints
// "served" for each message that comes back, until it is killed.
import com.rabbitmq.client.*;

public class Recover {
    public static void main(String[] args) throws Exception {
        ConnectionFactory factory = new ConnectionFactory();
        factory.setHost("127.0.0.1");
        factory.setPort(Integer.parseInt(args[0]));
        factory.setRequestedHeartbeat(4);
        factory.setNetworkRecoveryInterval(1000);
        Connection conn = factory.newConnection();
        Channel ch = conn.createChannel();
        ch.basicQos(10);
        ch.queueDeclare(args[1], true, false, false, null);
        ch.basicConsume(args[1], false, new DefaultConsumer(ch) {
            @Override
            public void handleDelivery(String tag, Envelope e, AMQP.BasicProperties p, byte[] body) throws java.io.IOException {
                ch.basicAck(e.getDeliveryTag(), false);
                System.out.println("served");
            }
        });
        while (true) {
            try {
                ch.basicPublish("", args[1], null, "x".getBytes());
            } catch (AlreadyClosedException | java.io.IOException e) {
                System.out.println(e.toString().replace('\n', ' '));
            }
            Thread.sleep(250);
        }
    }
}
