// amqp091-go doing what the programs in clients/ do.

//go:build linux

package integration

import (
	"context"
	"fmt"
	"strconv"

	amqp "github.com/rabbitmq/amqp091-go"
)

func goClient(ctx context.Context, op, port, queue string, n int) error {
	if op == "short" { // one message per connection
		for i := range n {
			if err := goSession(port, func(ch *amqp.Channel) error {
				return ch.PublishWithContext(ctx, "", queue, false, false, amqp.Publishing{Body: []byte(strconv.Itoa(i))})
			}); err != nil {
				return fmt.Errorf("connection %d: %w", i, err)
			}
		}
		return nil
	}
	ops := map[string]func(*amqp.Channel) error{
		"publish": func(ch *amqp.Channel) error { return goPublish(ctx, ch, queue, n) },
		"get":     func(ch *amqp.Channel) error { return goGet(ch, queue, n) },
		"consume": func(ch *amqp.Channel) error { return goConsume(ctx, ch, queue, n) },
		"tx":      func(ch *amqp.Channel) error { return goTx(ctx, ch, queue, n) },
		"rpc":     func(ch *amqp.Channel) error { return goRPC(ctx, ch, queue, "", n) },
		"direct":  func(ch *amqp.Channel) error { return goRPC(ctx, ch, queue, "amq.rabbitmq.reply-to", n) },
	}
	return goSession(port, ops[op])
}

// goSession connects, opens a channel, works and closes both in order.
func goSession(port string, work func(*amqp.Channel) error) error {
	conn, err := dial("127.0.0.1:"+port, amqp.Config{})
	if err != nil {
		return err
	}
	defer conn.Close()
	ch, err := conn.Channel()
	if err != nil {
		return err
	}
	if err := work(ch); err != nil {
		return err
	}
	if err := ch.Close(); err != nil {
		return fmt.Errorf("close channel: %w", err)
	}
	return conn.Close()
}

func goPublish(ctx context.Context, ch *amqp.Channel, queue string, n int) error {
	if err := ch.Confirm(false); err != nil {
		return err
	}
	confirms := make([]*amqp.DeferredConfirmation, n)
	for i := range confirms {
		c, err := ch.PublishWithDeferredConfirmWithContext(ctx, "", queue, true, false,
			amqp.Publishing{DeliveryMode: amqp.Persistent, MessageId: fmt.Sprintf("m%d", i), Body: []byte(strconv.Itoa(i))})
		if err != nil {
			return err
		}
		confirms[i] = c
	}
	for i, c := range confirms {
		if ok, err := c.WaitContext(ctx); !ok || err != nil {
			return fmt.Errorf("message %d was not confirmed: %w", i, err)
		}
	}
	return nil
}

func goGet(ch *amqp.Channel, queue string, n int) error {
	for i := 0; ; i++ {
		d, ok, err := ch.Get(queue, false)
		if err != nil {
			return err
		}
		if !ok && i == n {
			return nil
		}
		if !ok || string(d.Body) != strconv.Itoa(i) {
			return fmt.Errorf("message %d is %q (there: %v)", i, d.Body, ok)
		}
		if err := d.Ack(false); err != nil {
			return err
		}
	}
}

func goConsume(ctx context.Context, ch *amqp.Channel, queue string, n int) error {
	if err := ch.Qos(50, 0, false); err != nil {
		return err
	}
	deliveries, err := ch.ConsumeWithContext(ctx, queue, "one", false, false, false, false, nil)
	if err != nil {
		return err
	}
	for i := range n {
		d, ok := <-deliveries
		if !ok || string(d.Body) != strconv.Itoa(i) {
			return fmt.Errorf("message %d is %q (there: %v)", i, d.Body, ok)
		}
		if err := d.Ack(false); err != nil {
			return err
		}
	}
	return ch.Cancel("one", false)
}

func goTx(ctx context.Context, ch *amqp.Channel, queue string, n int) error {
	if err := ch.Tx(); err != nil {
		return err
	}
	for range n {
		if err := ch.PublishWithContext(ctx, "", queue, false, false, amqp.Publishing{Body: []byte("rolled back")}); err != nil {
			return err
		}
	}
	if err := ch.TxRollback(); err != nil {
		return err
	}
	for i := range n {
		if err := ch.PublishWithContext(ctx, "", queue, false, false, amqp.Publishing{Body: []byte(strconv.Itoa(i))}); err != nil {
			return err
		}
	}
	return ch.TxCommit()
}

// goRPC makes n calls; answers come to replies, or to an exclusive queue when it is "".
func goRPC(ctx context.Context, ch *amqp.Channel, queue, replies string, n int) error {
	if replies == "" {
		q, err := ch.QueueDeclare("", false, false, true, false, nil)
		if err != nil {
			return err
		}
		replies = q.Name
	}
	answers, err := ch.ConsumeWithContext(ctx, replies, "", true, false, false, false, nil)
	if err != nil {
		return err
	}
	for i := range n {
		err := ch.PublishWithContext(ctx, "", queue, false, false, amqp.Publishing{
			ReplyTo: replies, CorrelationId: fmt.Sprintf("c%d", i), Body: []byte(fmt.Sprintf("call %d", i))})
		if err != nil {
			return err
		}
		a, ok := <-answers
		if !ok || string(a.Body) != fmt.Sprintf("answer to call %d", i) || a.CorrelationId != fmt.Sprintf("c%d", i) {
			return fmt.Errorf("answer %d is %q (there: %v)", i, a.Body, ok)
		}
	}
	return nil
}
