// Load on etcd through its own client library, for scripts/bench-cluster: the same closed loop, keys and values as
// `duramen bench`. Only Debian packages: golang-go, golang-etcd-server-dev.
//
//	GOPATH=/usr/share/gocode GO111MODULE=off go build -o etcd_load etcd_load.go
//	etcd_load -endpoints A,B,C -op fill|put|get|watch-gaps
//
// fill writes every key once. put and get print one JSON object. watch-gaps writes without pause until its standard
// input ends, and prints "gap BEGIN END" (nanoseconds since 1970) for every stretch without an acknowledged put.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io/ioutil"
	"math/rand"
	"os"
	"sort"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/clientv3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/grpclog"
)

const fillBatch = 64 // puts in a transaction; etcd allows 128

func fail(what string, err error) {
	fmt.Fprintf(os.Stderr, "etcd_load: %s: %v\n", what, err)
	os.Exit(1)
}

func connect(endpoint string) *clientv3.Client {
	client, err := clientv3.New(clientv3.Config{
		Endpoints:   []string{endpoint},
		DialTimeout: 10 * time.Second,
		DialOptions: []grpc.DialOption{grpc.WithBlock()},
	})
	if err != nil {
		fail("cannot connect to "+endpoint, err)
	}
	return client
}

func key(number int) string { return fmt.Sprintf("key:%012d", number) }

func value(size int, random *rand.Rand) string {
	text := make([]byte, size)
	random.Read(text)
	return string(text)
}

func fill(clients []*clientv3.Client, keys, size int) {
	var group sync.WaitGroup
	for i := range clients {
		group.Add(1)
		go func(at int) {
			defer group.Done()
			random := rand.New(rand.NewSource(int64(at)))
			for first := at * fillBatch; first < keys; first += len(clients) * fillBatch {
				puts := []clientv3.Op{}
				for number := first; number < first+fillBatch && number < keys; number++ {
					puts = append(puts, clientv3.OpPut(key(number), value(size, random)))
				}
				if _, err := clients[at].Txn(context.Background()).Then(puts...).Commit(); err != nil {
					fail("fill", err)
				}
			}
		}(i)
	}
	group.Wait()
}

type worker struct {
	latencies []int64
	errors    int
}

// One closed loop; what ends before begin does not count.
func (own *worker) run(client *clientv3.Client, put bool, keys, size int, seed int64, begin, end time.Time) {
	random := rand.New(rand.NewSource(seed))
	content := value(size, random)
	for {
		start := time.Now()
		if !start.Before(end) {
			return
		}
		var err error
		if put {
			_, err = client.Put(context.Background(), key(random.Intn(keys)), content)
		} else {
			_, err = client.Get(context.Background(), key(random.Intn(keys)))
		}
		done := time.Now()
		switch {
		case err != nil:
			own.errors++
		case done.After(begin) && done.Before(end):
			own.latencies = append(own.latencies, int64(done.Sub(start)))
		}
	}
}

func measure(clients []*clientv3.Client, put bool, keys, size int, warmup, seconds float64) {
	begin := time.Now().Add(time.Duration(warmup * 1e9))
	end := begin.Add(time.Duration(seconds * 1e9))
	workers := make([]worker, len(clients))
	var group sync.WaitGroup
	for i := range workers {
		group.Add(1)
		go func(at int) {
			defer group.Done()
			workers[at].run(clients[at], put, keys, size, int64(at)+1, begin, end)
		}(i)
	}
	group.Wait()
	all := []int64{}
	errors := 0
	for i := range workers {
		all = append(all, workers[i].latencies...)
		errors += workers[i].errors
	}
	if len(all) == 0 {
		fail("nothing was answered", fmt.Errorf("%d errors", errors))
	}
	sort.Slice(all, func(i, j int) bool { return all[i] < all[j] })
	at := func(quantile float64) int64 { return all[int(float64(len(all)-1)*quantile)] }
	json.NewEncoder(os.Stdout).Encode(map[string]interface{}{
		"operations_per_second": float64(len(all)) / seconds,
		"errors":                errors,
		"latency_ns": map[string]int64{
			"p50": at(0.5), "p99": at(0.99), "p99_9": at(0.999), "max": all[len(all)-1]},
	})
}

// One writer; when a put fails or takes longer than 150 ms it asks the next member.
func watchGaps(clients []*clientv3.Client, size int) {
	ended := make(chan bool)
	go func() {
		bufio.NewReader(os.Stdin).ReadString(0)
		close(ended)
	}()
	random := rand.New(rand.NewSource(1))
	content := value(size, random)
	last := time.Now()
	fmt.Println("ready")
	for at := 0; ; {
		select {
		case <-ended:
			return
		default:
		}
		limited, cancel := context.WithTimeout(context.Background(), 150*time.Millisecond)
		_, err := clients[at].Put(limited, key(random.Intn(1000)), content)
		cancel()
		if err != nil {
			at = (at + 1) % len(clients)
			continue
		}
		now := time.Now()
		if now.Sub(last) > 50*time.Millisecond {
			fmt.Printf("gap %d %d\n", last.UnixNano(), now.UnixNano())
		}
		last = now
	}
}

func main() {
	endpoints := flag.String("endpoints", "127.0.0.1:2379", "members, separated by commas")
	op := flag.String("op", "put", "fill, put, get (linearizable) or watch-gaps")
	count := flag.Int("clients", 50, "requests in flight, each on its own connection")
	keys := flag.Int("keys", 1000000, "keys")
	size := flag.Int("value-size", 100, "bytes of a value")
	warmup := flag.Float64("warmup", 0.3, "seconds that do not count")
	seconds := flag.Float64("seconds", 5, "measured time")
	flag.Parse()
	grpclog.SetLoggerV2(grpclog.NewLoggerV2(ioutil.Discard, ioutil.Discard, ioutil.Discard))
	members := strings.Split(*endpoints, ",")
	if *op == "watch-gaps" {
		*count = len(members)
	}
	clients := make([]*clientv3.Client, *count)
	for i := range clients {
		clients[i] = connect(members[i%len(members)])
	}
	switch *op {
	case "fill":
		fill(clients, *keys, *size)
	case "put", "get":
		measure(clients, *op == "put", *keys, *size, *warmup, *seconds)
	case "watch-gaps":
		watchGaps(clients, *size)
	default:
		fail("there is no -op "+*op, fmt.Errorf("take fill, put, get or watch-gaps"))
	}
}
