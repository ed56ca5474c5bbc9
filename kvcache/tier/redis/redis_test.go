package redis_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	goredis "github.com/redis/go-redis/v9"

	"github.com/longctx/longctx/kvcache/page"
	"github.com/longctx/longctx/kvcache/tier"
	"github.com/longctx/longctx/kvcache/tier/redis"
	"github.com/longctx/longctx/kvcache/tier/tiertest"
)

func open(addr string, o redis.Options) *redis.Store {
	return redis.New(goredis.NewClient(&goredis.Options{Addr: addr, MaxRetries: -1, ContextTimeoutEnabled: true, ReadTimeout: time.Second}), o)
}

func TestStore(t *testing.T) {
	var server *miniredis.Miniredis
	tiertest.Run(t, func(t *testing.T) tier.Store {
		server = miniredis.RunT(t)
		return open(server.Addr(), redis.Options{})
	}, func(t *testing.T, k page.Key) {
		name := "longctx:" + k.Name()
		b, err := server.Get(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := server.Set(name, b[:len(b)-1]+string(b[len(b)-1]^1)); err != nil {
			t.Fatal(err)
		}
	})
}

func TestOptions(t *testing.T) {
	ctx := context.Background()
	server := miniredis.RunT(t)
	s := open(server.Addr(), redis.Options{Prefix: "a:", TTL: time.Minute})
	defer s.Close()
	k := tiertest.Key("m", 1)
	if err := s.Put(ctx, k, tiertest.Page(k, 4)); err != nil {
		t.Fatal(err)
	}
	if keys := server.Keys(); len(keys) != 1 || keys[0] != "a:"+k.Name() || server.TTL(keys[0]) != time.Minute {
		t.Errorf("keys %v", keys)
	}
	server.FastForward(time.Hour)
	if _, err := s.Get(ctx, k, nil); !errors.Is(err, tier.ErrNotFound) {
		t.Error(err)
	}
}

// TestServerErrors: what the server answers, and that it is gone, are errors of
// their types.
func TestServerErrors(t *testing.T) {
	ctx := context.Background()
	server := miniredis.RunT(t)
	s := open(server.Addr(), redis.Options{})
	defer s.Close()
	k := tiertest.Key("m", 1)
	server.SetError("OOM command not allowed when used memory > 'maxmemory'.")
	var full *tier.FullError
	if err := s.Put(ctx, k, tiertest.Page(k, 4)); !errors.As(err, &full) {
		t.Error(err)
	}
	server.SetError("LOADING the data set")
	var store *tier.StoreError
	if _, err := s.Get(ctx, k, nil); !errors.As(err, &store) {
		t.Error(err)
	}
	server.SetError("")
	server.Close()
	if _, err := s.Has(ctx, k); !errors.As(err, &store) {
		t.Error(err)
	}
}

// TestDeadServer: one that accepts and never answers holds a call no longer than
// its context, cancelled or timed out, and a Manager goes on without it.
func TestDeadServer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s := open(l.Addr().String(), redis.Options{})
	k := tiertest.Key("m", 1)
	b := tiertest.Page(k, 4)
	for what, call := range map[string]func(ctx context.Context) error{
		"Put":    func(ctx context.Context) error { return s.Put(ctx, k, b) },
		"Get":    func(ctx context.Context) error { _, err := s.Get(ctx, k, nil); return err },
		"Has":    func(ctx context.Context) error { _, err := s.Has(ctx, k); return err },
		"Delete": func(ctx context.Context) error { return s.Delete(ctx, k) },
	} {
		ctx, cancel := context.WithCancel(context.Background())
		time.AfterFunc(10*time.Millisecond, cancel)
		start := time.Now()
		if err := call(ctx); !errors.Is(err, context.Canceled) || time.Since(start) > 500*time.Millisecond {
			t.Errorf("%s cancelled: %v after %v", what, err, time.Since(start))
		}
		ctx, cancel = context.WithTimeout(context.Background(), 10*time.Millisecond)
		start = time.Now()
		if err := call(ctx); err == nil || time.Since(start) > 500*time.Millisecond {
			t.Errorf("%s timed out: %v after %v", what, err, time.Since(start))
		}
		cancel()
	}
	tiertest.DeadLevel(t, s)
}

// TestRealServer is TestStore on the server at $LONGCTX_REDIS, as in
// "localhost:6379". Its keys have a prefix of their own and last a minute.
func TestRealServer(t *testing.T) {
	addr := os.Getenv("LONGCTX_REDIS")
	if addr == "" {
		t.Skip("LONGCTX_REDIS is not set")
	}
	ctx := context.Background()
	client := goredis.NewClient(&goredis.Options{Addr: addr})
	defer client.Close()
	var prefix string
	tiertest.Run(t, func(t *testing.T) tier.Store {
		prefix = fmt.Sprintf("longctx-test-%x:", rand.Uint64())
		return open(addr, redis.Options{Prefix: prefix, TTL: time.Minute})
	}, func(t *testing.T, k page.Key) {
		if err := client.SetRange(ctx, prefix+k.Name(), 200, "damaged").Err(); err != nil {
			t.Fatal(err)
		}
	})
}
