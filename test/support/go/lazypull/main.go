// lazypull is a client that passes snapshot labels: it pulls an image through containerd's client and unpacks it while it is pulled, with
// the labels (reference, manifest digest, layer digest, list of layers) that snapshotters of remote images ask for. It prints one JSON
// object: what was pulled, how long it took, and which layers' bytes reached the content store.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/containerd/containerd"
	"github.com/containerd/containerd/errdefs"
	"github.com/containerd/containerd/images"
	"github.com/containerd/containerd/namespaces"
	"github.com/containerd/containerd/pkg/snapshotters"
	"github.com/containerd/containerd/remotes/docker"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

type layer struct {
	Digest  string `json:"digest"`
	Size    int64  `json:"sizeBytes"`
	Fetched bool   `json:"isFetched"`
}

type result struct {
	Name       string  `json:"name"`
	Digest     string  `json:"digest"`
	ElapsedMs  float64 `json:"elapsedMs"`
	Snapshot   string  `json:"snapshotKey"`
	Layers     []layer `json:"layers"`
	IsUnpacked bool    `json:"isUnpacked"`
}

func main() {
	address := flag.String("address", "", "containerd's socket")
	namespace := flag.String("namespace", "default", "containerd namespace")
	snapshotter := flag.String("snapshotter", "overlayfs", "snapshotter to unpack into")
	authorization := flag.String("basic", "", "NAME:PASSWORD for the registry")
	plain := flag.Bool("plain", true, "speak HTTP without TLS to the registry")
	labels := flag.Bool("labels", true, "pass snapshot labels")
	timeout := flag.Duration("timeout", 5*time.Minute, "deadline of the whole pull")
	flag.Parse()
	if flag.NArg() != 1 || *address == "" {
		fmt.Fprintln(os.Stderr, "usage: lazypull -address SOCKET [-namespace N] [-snapshotter S] REFERENCE")
		os.Exit(2)
	}
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(context.Background(), *namespace), *timeout)
	defer cancel()
	pulled, err := pull(ctx, *address, *snapshotter, flag.Arg(0), *authorization, *plain, *labels)
	if err != nil {
		fmt.Fprintln(os.Stderr, "lazypull:", err)
		os.Exit(1)
	}
	if err := json.NewEncoder(os.Stdout).Encode(pulled); err != nil {
		fmt.Fprintln(os.Stderr, "lazypull:", err)
		os.Exit(1)
	}
}

func pull(ctx context.Context, address, snapshotter, ref, basic string, plain, labels bool) (*result, error) {
	client, err := containerd.New(address)
	if err != nil {
		return nil, err
	}
	defer client.Close()

	credentials := func(string) (string, string, error) {
		name, password, _ := strings.Cut(basic, ":")
		return name, password, nil
	}
	hosts := []docker.RegistryOpt{
		docker.WithClient(http.DefaultClient),
		docker.WithAuthorizer(docker.NewDockerAuthorizer(docker.WithAuthCreds(credentials))),
	}
	if plain {
		hosts = append(hosts, docker.WithPlainHTTP(docker.MatchAllHosts))
	}
	options := []containerd.RemoteOpt{
		containerd.WithPullSnapshotter(snapshotter),
		containerd.WithPullUnpack,
		containerd.WithResolver(docker.NewResolver(docker.ResolverOptions{Hosts: docker.ConfigureDefaultRegistries(hosts...)})),
	}
	if labels {
		options = append(options, containerd.WithImageHandlerWrapper(snapshotters.AppendInfoHandlerWrapper(ref)))
	}

	started := time.Now()
	image, err := client.Pull(ctx, ref, options...)
	if err != nil {
		return nil, err
	}
	elapsed := time.Since(started)
	return describe(ctx, client, image, snapshotter, elapsed)
}

func describe(ctx context.Context, client *containerd.Client, image containerd.Image, snapshotter string, elapsed time.Duration) (*result, error) {
	unpacked, err := image.IsUnpacked(ctx, snapshotter)
	if err != nil {
		return nil, err
	}
	manifest, err := images.Manifest(ctx, client.ContentStore(), image.Target(), image.Platform())
	if err != nil {
		return nil, err
	}
	diffs, err := image.RootFS(ctx)
	if err != nil {
		return nil, err
	}
	out := &result{
		Name:       image.Name(),
		Digest:     image.Target().Digest.String(),
		ElapsedMs:  float64(elapsed.Microseconds()) / 1000,
		Snapshot:   chainID(diffs),
		IsUnpacked: unpacked,
	}
	for _, descriptor := range manifest.Layers {
		fetched, err := isInStore(ctx, client, descriptor)
		if err != nil {
			return nil, err
		}
		out.Layers = append(out.Layers, layer{Digest: descriptor.Digest.String(), Size: descriptor.Size, Fetched: fetched})
	}
	return out, nil
}

func isInStore(ctx context.Context, client *containerd.Client, descriptor ocispec.Descriptor) (bool, error) {
	_, err := client.ContentStore().Info(ctx, descriptor.Digest)
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	return err == nil, err
}
