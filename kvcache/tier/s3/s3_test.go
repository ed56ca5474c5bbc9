package s3_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"
	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/longctx/longctx/kvcache/page"
	"github.com/longctx/longctx/kvcache/tier"
	"github.com/longctx/longctx/kvcache/tier/s3"
	"github.com/longctx/longctx/kvcache/tier/tiertest"
)

const bucket = "pages"

func client(t *testing.T, endpoint string) *minio.Client {
	t.Helper()
	c, err := minio.New(endpoint, &minio.Options{
		Creds: credentials.NewStaticV4("key", "secret", ""), Region: "us-east-1", BucketLookup: minio.BucketLookupPath, MaxRetries: 1,
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// serve is a server in this process.
func serve(t *testing.T) *minio.Client {
	t.Helper()
	backend := s3mem.New()
	if err := backend.CreateBucket(bucket); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(gofakes3.New(backend).Server())
	t.Cleanup(server.Close)
	return client(t, strings.TrimPrefix(server.URL, "http://"))
}

func TestStore(t *testing.T) {
	ctx := context.Background()
	var c *minio.Client
	tiertest.Run(t, func(t *testing.T) tier.Store {
		c = serve(t)
		return s3.New(c, bucket, s3.Options{Prefix: "cache/"})
	}, func(t *testing.T, k page.Key) {
		name := "cache/" + k.Name() + ".page"
		o, err := c.GetObject(ctx, bucket, name, minio.GetObjectOptions{})
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(o)
		if err != nil {
			t.Fatal(err)
		}
		b[len(b)-1] ^= 1
		if _, err := c.PutObject(ctx, bucket, name, bytes.NewReader(b), int64(len(b)), minio.PutObjectOptions{}); err != nil {
			t.Fatal(err)
		}
	})
}

// TestServerErrors: what the server answers are errors of their types.
func TestServerErrors(t *testing.T) {
	ctx := context.Background()
	k := tiertest.Key("m", 1)
	var store *tier.StoreError
	missing := s3.New(serve(t), "other", s3.Options{})
	if err := missing.Put(ctx, k, tiertest.Page(k, 4)); !errors.As(err, &store) {
		t.Errorf("Put to no bucket: %v", err)
	}
	if _, err := missing.Get(ctx, k, nil); !errors.As(err, &store) {
		t.Errorf("Get from no bucket: %v", err)
	}
	var code string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprintf(w, "<Error><Code>%s</Code><Message>no</Message></Error>", code)
	}))
	defer server.Close()
	s := s3.New(client(t, strings.TrimPrefix(server.URL, "http://")), bucket, s3.Options{})
	var full *tier.FullError
	code = "XMinioStorageFull"
	if err := s.Put(ctx, k, tiertest.Page(k, 4)); !errors.As(err, &full) {
		t.Errorf("Put to a full bucket: %v", err)
	}
	code = "AccessDenied"
	_, getErr := s.Get(ctx, k, nil)
	_, hasErr := s.Has(ctx, k)
	for _, err := range []error{getErr, hasErr, s.Put(ctx, k, tiertest.Page(k, 4)), s.Delete(ctx, k)} {
		if !errors.As(err, &store) {
			t.Errorf("denied: %v", err)
		}
	}
}

// TestDeadServer: one that accepts and never answers holds a call no longer than
// its context, and a Manager goes on without it.
func TestDeadServer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s := s3.New(client(t, l.Addr().String()), bucket, s3.Options{})
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
			t.Errorf("%s: %v after %v", what, err, time.Since(start))
		}
	}
	tiertest.DeadLevel(t, s)
}
