// What the demo says: the table, in a wide and in a narrow window, and how to try the proxy
// with a client of one's own.

package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/amqproxysvc/amqproxysvc/service/terminal"
)

// wide is what the table and the PHP lines need; a window that is narrower gets a list.
const wide = 78

// table shows the ways of sending beside each other. columns is the window's width, 0: not known.
func table(columns int, rs ...result) string {
	var b strings.Builder
	narrow := columns > 0 && columns < wide
	if !narrow {
		fmt.Fprintf(&b, "%-22s %8s %10s %10s %10s %12s\n", "one message each", "messages", "first", "p50", "p99", "connections")
	}
	for _, r := range rs {
		times := slices.Sorted(slices.Values(r.times))
		at := func(q float64) string { return ms(times[int(q*float64(len(times)-1))]) }
		if narrow {
			fmt.Fprintf(&b, "%s\n  messages    %s\n  first       %s\n  p50         %s\n  p99         %s\n  connections %d\n",
				r.name, strconv.Itoa(len(r.times)), ms(r.times[0]), at(0.5), at(0.99), r.opened)
			continue
		}
		fmt.Fprintf(&b, "%-22s %8d %10s %10s %10s %12d\n", r.name, len(r.times), ms(r.times[0]), at(0.5), at(0.99), r.opened)
	}
	b.WriteString(paragraph(columns, "Each message had a connection of its own, as in a PHP request; connections are those that the broker saw opened."))
	return b.String()
}

func ms(t time.Duration) string {
	return strconv.FormatFloat(float64(t.Microseconds())/1000, 'f', 2, 64) + " ms"
}

// paragraph breaks a text at the window's edge, at wide where that is not known.
func paragraph(columns int, text string) string {
	width := wide
	if columns > 0 {
		width = min(wide, columns-1)
	}
	return terminal.Wrap(text, width, "")
}

// invitation tells how to use the proxy with a client of one's own. The password stands in
// it only where it is the stand-in's.
func invitation(columns, port int, t *target) string {
	password, where := "YOUR PASSWORD", "your broker's users"
	if t.broker != nil {
		password, where = standInPassword, "user guest, password "+standInPassword+", vhost /"
	}
	var b strings.Builder
	b.WriteString(paragraph(columns, fmt.Sprintf("The proxy stays. Point a client of your own at it: host 127.0.0.1, port %d, no TLS, %s. PHP, for instance, "+
		"in a file that php runs:", port, where)))
	fmt.Fprintf(&b, `
    <?php
    $c = new AMQPConnection(['host' => '127.0.0.1', 'port' => %d,
        'login' => %s, 'password' => '%s',
        'vhost' => %s]);
    $c->connect();
    $channel = new AMQPChannel($c);
    $queue = new AMQPQueue($channel);
    $queue->setName('amqproxysvc-demo-php');
    $queue->declareQueue();
    (new AMQPExchange($channel))->publish('hello', $queue->getName());
    while (!($message = $queue->get(AMQP_AUTOACK))) usleep(10000);
    echo $message->getBody(), " came back\n";
    $queue->delete();

`, port, phpString(t.client.User), password, phpString(t.client.VHost))
	b.WriteString(paragraph(columns, "Stop with Ctrl-C."))
	return b.String()
}

func phpString(text string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, "'", `\'`).Replace(text) + "'"
}
