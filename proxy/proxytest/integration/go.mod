// Tests with real brokers and third-party clients, kept apart so that the product's
// go.mod shows the product.
module github.com/amqproxysvc/amqproxysvc/proxy/proxytest/integration

go 1.26.0

replace github.com/amqproxysvc/amqproxysvc => ../../..

require (
	github.com/amqproxysvc/amqproxysvc v0.0.0-00010101000000-000000000000
	github.com/rabbitmq/amqp091-go v1.16.0
)

require golang.org/x/sys v0.49.0 // indirect
