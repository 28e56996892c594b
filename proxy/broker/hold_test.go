package broker

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"
)

// A credential may end while a broker that is away is waited for: it is asked for anew at each dial.
func TestHoldAsksForTheCredentialAnew(t *testing.T) {
	withCluster(t, []string{"a:5672"}, func(c *cluster) { c.cfg.Hold = time.Minute }, func(c *cluster) {
		c.drop("a:5672", true)
		came := time.Now()
		go func() {
			time.Sleep(20 * time.Second)
			c.drop("a:5672", false)
		}()
		k, err := c.b.LoginBy(ctx, Known, func(context.Context) (Credential, []byte, error) {
			if time.Since(came) > 15*time.Second {
				return Credential{User: "guest", Secret: NewSecret("guest")}, props(), nil
			}
			return Credential{User: "guest", Secret: NewSecret(fmt.Sprint("of ", time.Since(came)))}, props(), nil
		})
		if err != nil {
			t.Fatalf("the broker was sent what was asked for at first: %v", err)
		}
		k.Close()
		none := errors.New("none")
		if _, err := c.b.LoginBy(ctx, Known, func(context.Context) (Credential, []byte, error) { return Credential{}, nil, none }); !errors.Is(err, none) {
			t.Errorf("without a credential: %v", err)
		}
	})
}
